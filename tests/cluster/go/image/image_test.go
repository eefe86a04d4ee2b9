package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	r, err := parseDockerfile(`# a comment
FROM scratch
LABEL a=b c="d e" \
# another, in the middle
  f=g
ENV PATH=/bin X=1
ENV X=2
WORKDIR /srv
COPY a b dir/
WORKDIR sub
copy ["with space", "/x"]
USER 65532:65532
ENTRYPOINT ["/bin/a", "b"]
CMD ["c"]
`)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what, got, want string) {
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	check("labels", r.labels["a"]+r.labels["c"]+r.labels["f"], "bd eg")
	check("env", strings.Join(r.env, ","), "PATH=/bin,X=2")
	check("user", r.user, "65532:65532")
	check("workdir", r.workdir, "/srv/sub")
	check("entrypoint", strings.Join(r.entrypoint, ","), "/bin/a,b")
	check("cmd", strings.Join(r.cmd, ","), "c")
	check("copy", strings.Join(r.copies[1].sources, ",")+" "+r.copies[1].dest, "a,b /srv/dir/")
	check("copy of a list", strings.Join(r.copies[3].sources, ",")+" "+r.copies[3].dest, "with space /x")
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "no FROM",
		"COPY a /":                      "before FROM",
		"FROM debian":                   "only scratch",
		"FROM scratch\nFROM scratch":    "only one stage",
		"FROM scratch\nRUN true":        "line 2: RUN: not supported",
		"FROM scratch\nCMD true":        "no shell",
		"FROM scratch\nENTRYPOINT []":   "no shell",
		"FROM scratch\nCOPY a":          "source and a destination",
		"FROM scratch\nCOPY a b c":      "ends in /",
		"FROM scratch\nCOPY --link a b": "--link is not supported",
		"FROM scratch\nENV A":           "key=value",
		"FROM scratch\nENV A b":         "key=value",
		"FROM scratch\nENV A=\"b":       "unclosed",
		"FROM scratch\nENV A=$B":        "variables",
		"FROM scratch\nUSER":            "one word",
		"FROM scratch\nUSER a b":        "one word",
	} {
		_, err := parseDockerfile(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// contents of the layer of an image of that Dockerfile, a line each.
func contents(t *testing.T, context, dockerfile string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.tar")
	if err := build(write(t, dockerfile), context, "localhost/test:1", out); err != nil {
		t.Fatal(err)
	}
	archive, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	outer := tar.NewReader(archive)
	var last []byte
	for {
		if _, err := outer.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if last, err = io.ReadAll(outer); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	inner := tar.NewReader(bytes.NewReader(last))
	for {
		h, err := inner.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(lines, "\n")
		} else if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(inner)
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		lines = append(lines, strings.TrimSpace(strings.Join([]string{
			h.FileInfo().Mode().String(), h.Name, h.Linkname, string(data)}, " ")))
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func context(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "root", "tmp"), 0o755))
	must(os.Chmod(filepath.Join(dir, "root", "tmp"), os.ModeSticky|0o777))
	must(os.MkdirAll(filepath.Join(dir, "root", "bin"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "root", "bin", "tool"), []byte("T"), 0o755))
	must(os.Symlink("tool", filepath.Join(dir, "root", "bin", "alias")))
	must(os.WriteFile(filepath.Join(dir, "one"), []byte("1"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "two"), []byte("2"), 0o644))
	return dir
}

func TestCopy(t *testing.T) {
	dir := context(t)
	for copies, want := range map[string]string{
		"COPY root/ /":              "drwxr-xr-x bin/\nLrwxrwxrwx bin/alias tool\n-rwxr-xr-x bin/tool  T\ndtrwxrwxrwx tmp/",
		"COPY root/bin /x":          "drwxr-xr-x x/\nLrwxrwxrwx x/alias tool\n-rwxr-xr-x x/tool  T",
		"COPY one /":                "-rw------- one  1",
		"COPY one /a/b":             "drwxr-xr-x a/\n-rw------- a/b  1",
		"COPY one two /a/":          "drwxr-xr-x a/\n-rw------- a/one  1\n-rw-r--r-- a/two  2",
		"COPY o* t* /":              "-rw------- one  1\n-rw-r--r-- two  2",
		"WORKDIR /w\nCOPY one .":    "drwxr-xr-x w/\n-rw------- w/one  1",
		"COPY one /f\nCOPY two /f":  "-rw-r--r-- f  2",
		"WORKDIR /d\nCOPY one /d":   "drwxr-xr-x d/\n-rw------- d/one  1",
		"COPY ../../../../one /esc": "-rw------- esc  1",
	} {
		if got := contents(t, dir, "FROM scratch\n"+copies); got != want {
			t.Errorf("%q:\ngot\n%s\nwant\n%s", copies, got, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	dir := context(t)
	for copies, want := range map[string]string{
		"COPY none /":             "no such file",
		"COPY o* t* /x":           "ends in /",
		"COPY one /f\nWORKDIR /f": "not a directory",
		"COPY root/bin /x\nCOPY one /x/alias\nCOPY root /x/alias/y": "not a directory",
	} {
		err := build(write(t, "FROM scratch\n"+copies), dir, "localhost/test:1", filepath.Join(t.TempDir(), "out"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", copies, err, want)
		}
	}
	if err := build(write(t, "FROM scratch"), dir, "test", filepath.Join(t.TempDir(), "out")); err == nil {
		t.Error("a name without a registry and a tag was taken")
	}
}

func TestSameTwice(t *testing.T) {
	dockerfile := write(t, "FROM scratch\nCOPY . /\nLABEL a=b c=d e=f\n")
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(t.TempDir(), "out.tar")
		if err := build(dockerfile, context(t), "localhost/test:1", out); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same files gave two different archives")
	}
}

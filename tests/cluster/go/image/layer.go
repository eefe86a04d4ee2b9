package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// node is one entry of the image's file system.
type node struct {
	mode   fs.FileMode
	source string // of a file: where its content is
	link   string // of a symbolic link: its target
}

// tree maps a path without its leading slash to its entry.
type tree map[string]node

// assemble carries out the COPY steps. Owners are root and times are the
// epoch, as nothing of the machine that builds may show in the image.
func assemble(context string, steps []copyStep) (tree, error) {
	t := tree{}
	for _, s := range steps {
		if len(s.sources) == 0 {
			if err := t.directory(clean(s.dest), 0o755); err != nil {
				return nil, fmt.Errorf("line %d: %w", s.line, err)
			}
			continue
		}
		var found []string
		for _, pattern := range s.sources {
			// Rooting the pattern first keeps .. inside the context.
			names, err := filepath.Glob(filepath.Join(context, filepath.Clean("/"+pattern)))
			if err != nil {
				return nil, fmt.Errorf("line %d: COPY %s: %w", s.line, pattern, err)
			}
			if len(names) == 0 {
				return nil, fmt.Errorf("line %d: COPY %s: no such file in %s", s.line, pattern, context)
			}
			found = append(found, names...)
		}
		into := strings.HasSuffix(s.dest, "/")
		if len(found) > 1 && !into {
			return nil, fmt.Errorf("line %d: COPY: several files need a destination that ends in /", s.line)
		}
		for _, name := range found {
			if err := t.copy(name, clean(s.dest), into); err != nil {
				return nil, fmt.Errorf("line %d: COPY: %w", s.line, err)
			}
		}
	}
	return t, nil
}

func clean(p string) string {
	return strings.TrimPrefix(path.Clean("/"+p), "/")
}

func (t tree) copy(source, dest string, into bool) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		// As Docker does: a directory's content is copied, not itself.
		return filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(source, name)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if relative == "." {
				return t.directory(dest, 0o755)
			}
			return t.add(name, path.Join(dest, filepath.ToSlash(relative)), info)
		})
	}
	if existing, ok := t[dest]; into || dest == "" || ok && existing.mode.IsDir() {
		dest = path.Join(dest, filepath.Base(source))
	}
	return t.add(source, dest, info)
}

func (t tree) add(source, dest string, info fs.FileInfo) error {
	if old, ok := t[dest]; ok && old.mode.IsDir() != info.IsDir() {
		return fmt.Errorf("/%s would be both a directory and not", dest)
	}
	if err := t.directory(parent(dest), 0o755); err != nil {
		return err
	}
	switch {
	case info.IsDir():
		t[dest] = node{mode: info.Mode()}
	case info.Mode().IsRegular():
		t[dest] = node{mode: info.Mode(), source: source}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(source)
		if err != nil {
			return err
		}
		t[dest] = node{mode: info.Mode(), link: target}
	default:
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", source)
	}
	return nil
}

// directory makes a directory and its parents where they are missing.
func (t tree) directory(name string, mode fs.FileMode) error {
	if name == "" {
		return nil
	}
	if old, ok := t[name]; ok {
		if !old.mode.IsDir() {
			return fmt.Errorf("/%s is not a directory", name)
		}
		return nil
	}
	if err := t.directory(parent(name), 0o755); err != nil {
		return err
	}
	t[name] = node{mode: fs.ModeDir | mode}
	return nil
}

func parent(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// write writes the tree as a tar that is the same for the same tree.
func (t tree) write(w io.Writer) error {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	sort.Strings(names)
	out := tar.NewWriter(w)
	for _, name := range names {
		if err := writeEntry(out, name, t[name]); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeEntry(out *tar.Writer, name string, n node) error {
	h := &tar.Header{Name: name, Mode: int64(n.mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	for bit, value := range map[fs.FileMode]int64{fs.ModeSticky: 0o1000, fs.ModeSetgid: 0o2000, fs.ModeSetuid: 0o4000} {
		if n.mode&bit != 0 {
			h.Mode |= value
		}
	}
	switch {
	case n.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return out.WriteHeader(h)
	case n.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, n.link, 0o777
		return out.WriteHeader(h)
	}
	f, err := os.Open(n.source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}

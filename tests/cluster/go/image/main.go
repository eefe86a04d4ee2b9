// Command image builds a container image from a Dockerfile without a container
// engine: the same Dockerfile and files give the same archive, bit for bit.
// The archive is an OCI layout that `docker load` understands as well.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const usage = `usage: image -t NAME:TAG -o OUT.tar [-f DOCKERFILE] CONTEXT

Builds the image that DOCKERFILE (CONTEXT/Dockerfile) describes, whose base
must be scratch, from the files in the folder CONTEXT, as an OCI archive.
`

func main() {
	name := flag.String("t", "", "name of the image, with a tag")
	out := flag.String("o", "", "archive to write")
	file := flag.String("f", "", "the Dockerfile")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	if *name == "" || *out == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	context := flag.Arg(0)
	if *file == "" {
		*file = filepath.Join(context, "Dockerfile")
	}
	if err := build(*file, context, *name, *out); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

func build(dockerfile, context, name, out string) (err error) {
	if base := name[strings.LastIndexByte(name, '/')+1:]; !strings.Contains(base, ":") || !strings.Contains(name, "/") {
		return fmt.Errorf("%s: the name needs a registry and a tag, as in localhost/lockstep:dev", name)
	}
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return err
	}
	r, err := parseDockerfile(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", dockerfile, err)
	}
	files, err := assemble(context, r.copies)
	if err != nil {
		return fmt.Errorf("%s: %w", dockerfile, err)
	}

	// The layer goes to a file first: its digest is needed before it.
	layer, err := os.CreateTemp(filepath.Dir(out), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	hash := sha256.New()
	if err := files.write(io.MultiWriter(layer, hash)); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}

	// An archive under its final name is always a whole one.
	partial, err := os.CreateTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return err
	}
	defer func() {
		partial.Close()
		if err != nil {
			os.Remove(partial.Name())
		}
	}()
	if err := writeArchive(partial, r, name, layer, size, hex.EncodeToString(hash.Sum(nil))); err != nil {
		return err
	}
	if err := partial.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(partial.Name(), out)
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

type imageConfig struct {
	Created      string          `json:"created"`
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Config       containerConfig `json:"config"`
	RootFS       rootFS          `json:"rootfs"`
	History      []history       `json:"history"`
}

type containerConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

const (
	configType   = "application/vnd.oci.image.config.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
	epoch        = "1970-01-01T00:00:00Z"
	defaultPath  = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func writeArchive(w io.Writer, r *recipe, name string, layer io.Reader, layerSize int64, layerHash string) error {
	env := r.env
	if !hasPath(env) {
		env = append([]string{defaultPath}, env...) // as Docker does
	}
	config, err := json.Marshal(imageConfig{
		Created: epoch, Architecture: runtime.GOARCH, OS: "linux",
		Config: containerConfig{User: r.user, Env: env, Entrypoint: r.entrypoint, Cmd: r.cmd,
			WorkingDir: r.workdir, Labels: r.labels},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{"sha256:" + layerHash}},
		History: []history{{Created: epoch, CreatedBy: "tests/cluster/image"}},
	})
	if err != nil {
		return err
	}
	m, err := json.Marshal(manifest{
		SchemaVersion: 2, MediaType: manifestType, Config: describe(configType, config),
		Layers: []descriptor{{MediaType: layerType, Digest: "sha256:" + layerHash, Size: layerSize}},
	})
	if err != nil {
		return err
	}
	entry := describe(manifestType, m)
	entry.Annotations = map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": name[strings.LastIndexByte(name, ':')+1:],
	}
	i, err := json.Marshal(index{SchemaVersion: 2, Manifests: []descriptor{entry}})
	if err != nil {
		return err
	}
	// For `docker load` of engines that do not read the OCI layout.
	legacy, err := json.Marshal([]map[string]any{{
		"Config": blob(digest(config)), "RepoTags": []string{name}, "Layers": []string{blob(layerHash)},
	}})
	if err != nil {
		return err
	}

	out := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		size int64
		data io.Reader
	}{
		of("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		of("index.json", i),
		of("manifest.json", legacy),
		of(blob(digest(config)), config),
		of(blob(digest(m)), m),
		{blob(layerHash), layerSize, layer},
	} {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: f.size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, f.data); err != nil {
			return err
		}
	}
	return out.Close()
}

func of(name string, data []byte) struct {
	name string
	size int64
	data io.Reader
} {
	return struct {
		name string
		size int64
		data io.Reader
	}{name, int64(len(data)), bytes.NewReader(data)}
}

func hasPath(env []string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, "PATH=") {
			return true
		}
	}
	return false
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func blob(hash string) string { return "blobs/sha256/" + hash }

func describe(mediaType string, data []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest(data), Size: int64(len(data))}
}

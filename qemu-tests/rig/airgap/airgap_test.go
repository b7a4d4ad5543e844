package airgap

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var images = []Image{
	{Name: "docker.io/rancher/mirrored-pause:3.6", Path: "pause", Program: []byte("one")},
	{Name: "nodezero.dev/rig/echo:1", Path: "echo", Program: []byte("two")},
}

func TestArchiveNamesItsImages(t *testing.T) {
	files := read(t, write(t))
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != len(images) {
		t.Fatalf("the index names %d images, expected %d", len(index.Manifests), len(images))
	}
	for i, manifest := range index.Manifests {
		if name := manifest.Annotations["io.containerd.image.name"]; name != images[i].Name {
			t.Errorf("image %d is %s, expected %s", i, name, images[i].Name)
		}
		content := files["blobs/sha256/"+manifest.Digest[len("sha256:"):]]
		if len(content) != manifest.Size {
			t.Errorf("%s: the manifest has %d bytes, expected %d", images[i].Name, len(content), manifest.Size)
		}
	}
}

func TestSameProgramsGiveSameBytes(t *testing.T) {
	if !bytes.Equal(write(t), write(t)) {
		t.Error("two archives of the same programs differ")
	}
}

func write(t *testing.T) []byte {
	t.Helper()
	var archive bytes.Buffer
	if err := Write(&archive, images); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func read(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	decoder, err := zstd.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for reader := tar.NewReader(decoder); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

// Package airgap writes container images without a container engine, as one archive that "ctr images import" and K3s'
// airgap import take.
//
// Specification: OCI image layout and image configuration (github.com/opencontainers/image-spec). Each image is one
// static program on an empty root. The same programs give the same bytes.
package airgap

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Image is a name with registry and tag, and a program that becomes its root's only file and its entry point.
type Image struct {
	Name    string
	Path    string
	Program []byte
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

var platform = map[string]string{"architecture": "amd64", "os": "linux"}

// Write writes the archive, compressed with zstd.
func Write(output io.Writer, images []Image) error {
	compressor, err := zstd.NewWriter(output, zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	if err := writeLayout(compressor, images); err != nil {
		return err
	}
	return compressor.Close()
}

func writeLayout(output io.Writer, images []Image) error {
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var manifests []descriptor
	for _, image := range images {
		manifest, err := addImage(files, image)
		if err != nil {
			return err
		}
		manifests = append(manifests, manifest)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": manifests})
	if err != nil {
		return err
	}
	files["index.json"] = index
	return writeTar(output, files, 0o644)
}

// addImage adds layer, configuration and manifest of an image, and describes the manifest.
func addImage(files map[string][]byte, image Image) (descriptor, error) {
	var layer bytes.Buffer
	if err := writeTar(&layer, map[string][]byte{image.Path: image.Program}, 0o755); err != nil {
		return descriptor{}, err
	}
	layerBlob := addBlob(files, typeLayer, layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": platform["architecture"],
		"os":           platform["os"],
		"config":       map[string]any{"Entrypoint": []string{"/" + image.Path}, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
	})
	if err != nil {
		return descriptor{}, err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     typeManifest,
		"config":        addBlob(files, typeConfig, config),
		"layers":        []descriptor{layerBlob},
	})
	if err != nil {
		return descriptor{}, err
	}
	described := addBlob(files, typeManifest, manifest)
	described.Platform = platform
	described.Annotations = map[string]string{"io.containerd.image.name": image.Name}
	return described, nil
}

func addBlob(files map[string][]byte, mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	files["blobs/sha256/"+digest] = content
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
}

// writeTar writes files in the order of their names, owned by root, without times.
func writeTar(output io.Writer, files map[string][]byte, mode int64) error {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	archive := tar.NewWriter(output)
	for _, name := range names {
		header := &tar.Header{Name: name, Mode: mode, Size: int64(len(files[name])), Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(files[name]); err != nil {
			return err
		}
	}
	return archive.Close()
}

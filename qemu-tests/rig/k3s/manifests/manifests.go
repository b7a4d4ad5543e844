// Package manifests applies what lies in the server's manifests directory, at start and whenever a file changes.
//
// Specification: docs.k3s.io/installation/packaged-components ("Auto-Deploying Manifests"). Objects stay when their
// file goes. Left out: K3s' AddOn objects, HelmCharts, packaged components. A file NAME.skip beside a file keeps it from
// being applied.
package manifests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"nodezero.dev/rig/k3s/log"
)

const (
	interval     = 5 * time.Second
	fieldManager = "deploy@k3s"
)

// Deployer remembers what it applied.
type Deployer struct {
	directory string
	client    dynamic.Interface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	applied   map[string][sha256.Size]byte
	reported  map[string]string
}

// New makes the deployer of a directory.
func New(directory string, config *rest.Config) (*Deployer, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Deployer{
		directory: directory,
		client:    client,
		mapper:    restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(clients.Discovery())),
		applied:   map[string][sha256.Size]byte{},
		reported:  map[string]string{},
	}, nil
}

// Run applies until the context ends. A file that cannot be applied is tried again.
func (d *Deployer) Run(ctx context.Context) {
	for {
		d.sweep(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

func (d *Deployer) sweep(ctx context.Context) {
	_ = filepath.WalkDir(d.directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !isManifest(path) {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		sum := sha256.Sum256(content)
		if d.applied[path] == sum {
			return nil
		}
		if err := d.apply(ctx, content); err != nil {
			if d.reported[path] != err.Error() {
				log.Error("Failed to process config: applying %s: %v", path, err)
				d.reported[path] = err.Error()
			}
			return nil
		}
		d.applied[path] = sum
		delete(d.reported, path)
		log.Info("Applied manifest %s", path)
		return nil
	})
}

func isManifest(path string) bool {
	if _, err := os.Stat(path + ".skip"); err == nil {
		return false
	}
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	default:
		return false
	}
}

func (d *Deployer) apply(ctx context.Context, content []byte) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(object.Object) == 0 {
			continue
		}
		if err := d.applyObject(ctx, object); err != nil {
			return fmt.Errorf("%s %s: %w", strings.ToLower(object.GetKind()), object.GetName(), err)
		}
	}
}

func (d *Deployer) applyObject(ctx context.Context, object *unstructured.Unstructured) error {
	kind := object.GroupVersionKind()
	mapping, err := d.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		// The kind may be one that was defined a moment ago.
		d.mapper.Reset()
		return err
	}
	resource := dynamic.ResourceInterface(d.client.Resource(mapping.Resource))
	if mapping.Scope.Name() == "namespace" {
		namespace := object.GetNamespace()
		if namespace == "" {
			namespace = "default"
		}
		resource = d.client.Resource(mapping.Resource).Namespace(namespace)
	}
	_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// Package kubeconfig writes kubeconfigs: with the certificates in them for the operator, with paths for components.
package kubeconfig

import (
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Access is a server and the files by which one proves oneself to it.
type Access struct {
	Server           string
	Authority        string
	Certificate, Key string
}

// Write writes a kubeconfig that names files.
func Write(path string, access Access) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return clientcmd.WriteToFile(*build(access), path)
}

// WriteEmbedded writes a kubeconfig that holds the files' contents, with K3s' name for everything, "default".
func WriteEmbedded(path string, access Access, mode os.FileMode) error {
	config := build(access)
	if err := clientcmdapi.FlattenConfig(config); err != nil {
		return err
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	// A file of its own first: nobody reads half a kubeconfig, and at no time with more rights than asked for.
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.WriteFile(draft, content, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(draft, mode); err != nil {
		return err
	}
	return os.Rename(draft, path)
}

func build(access Access) *clientcmdapi.Config {
	const name = "default"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: access.Server, CertificateAuthority: access.Authority}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificate: access.Certificate, ClientKey: access.Key}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return config
}

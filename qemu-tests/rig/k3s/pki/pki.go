// Package pki holds the cluster's certificate authorities and signs what they vouch for.
//
// Specification: docs.k3s.io/cli/certificate ("Using Custom CA Certificates"): authorities that lie in server/tls
// before the first start are used, others are made. Certificates that they sign are made anew at each start.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	authorityYears = 10
	leafYears      = 1
)

// Authority signs certificates.
type Authority struct {
	// Bundle is the PEM file as it lies on disk: the signing certificate, and its chain where there is one.
	Bundle      []byte
	certificate *x509.Certificate
	key         crypto.Signer
}

// Subject is whom a certificate names, and for what.
type Subject struct {
	Name         string
	Organization string
	// Hosts are DNS names and addresses; a certificate without any is a client's.
	Hosts []string
}

// EnsureAuthority takes the authority that lies in directory as NAME.crt and NAME.key, or makes one there. A certificate
// without its key, or the other way round, is an error.
func EnsureAuthority(directory, name string) (*Authority, error) {
	certificatePath, keyPath := filepath.Join(directory, name+".crt"), filepath.Join(directory, name+".key")
	_, certificateErr := os.Stat(certificatePath)
	_, keyErr := os.Stat(keyPath)
	if os.IsNotExist(certificateErr) && os.IsNotExist(keyErr) {
		if err := makeAuthority(certificatePath, keyPath, name); err != nil {
			return nil, fmt.Errorf("making %s: %w", certificatePath, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(certificatePath, keyPath)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", certificatePath, err)
	}
	certificate, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", certificatePath, err)
	}
	if !certificate.IsCA {
		return nil, fmt.Errorf("reading %s: it is not the certificate of an authority", certificatePath)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading %s: its key cannot sign", keyPath)
	}
	bundle, err := os.ReadFile(certificatePath)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", certificatePath, err)
	}
	return &Authority{Bundle: bundle, certificate: certificate, key: key}, nil
}

// EnsureKey makes a private key at path unless one is there.
func EnsureKey(path string) error {
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		return err
	}
	_, content, err := newKey()
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// Issue signs a certificate for a new key and writes both, as PATH.crt and PATH.key.
func (a *Authority) Issue(path string, subject Subject) error {
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	certificate, err := a.sign(subject, key.Public())
	if err != nil {
		return fmt.Errorf("signing %s: %w", path, err)
	}
	if err := os.WriteFile(path+".key", keyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(path+".crt", certificate, 0o644)
}

// SignRequest signs a certificate for the key of a request. Nothing but the key is taken from it.
func (a *Authority) SignRequest(request []byte, subject Subject) ([]byte, error) {
	if block, _ := pem.Decode(request); block != nil {
		request = block.Bytes
	}
	parsed, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, err
	}
	if err := parsed.CheckSignature(); err != nil {
		return nil, err
	}
	return a.sign(subject, parsed.PublicKey)
}

// NewRequest makes a key and a request for it, both PEM.
func NewRequest() (request, key []byte, err error) {
	signer, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, signer)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, nil
}

func (a *Authority) sign(subject Subject, public crypto.PublicKey) ([]byte, error) {
	template, err := newTemplate(subject.Name, leafYears)
	if err != nil {
		return nil, err
	}
	if subject.Organization != "" {
		template.Subject.Organization = []string{subject.Organization}
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, host := range subject.Hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, err
	}
	return append(encodeCertificate(der), a.Bundle...), nil
}

func makeAuthority(certificatePath, keyPath, name string) error {
	if err := os.MkdirAll(filepath.Dir(certificatePath), 0o700); err != nil {
		return err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	template, err := newTemplate(fmt.Sprintf("k3s-%s@%d", name, time.Now().Unix()), authorityYears)
	if err != nil {
		return err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyPath, keyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(certificatePath, encodeCertificate(der), 0o644)
}

func newTemplate(name string, years int) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 62))
	if err != nil {
		return nil, err
	}
	// An hour back, for nodes whose clock is not yet set.
	start := time.Now().Add(-time.Hour).UTC()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    start,
		NotAfter:     start.AddDate(years, 0, 0),
	}, nil
}

// newKey makes a P-256 key: K3s' choice, too, and cheap on an emulated processor.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if content == nil {
		return nil, nil, errors.New("encoding key")
	}
	return key, content, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

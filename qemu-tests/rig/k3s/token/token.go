// Package token reads, writes and checks K3s' join tokens.
//
// Specification: docs.k3s.io/cli/token. A short token is a password. A full one is "K10", the hash of the cluster's
// server CA in hex, "::" and credentials, "user:password". Left out: bootstrap tokens ("id.secret").
package token

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

const prefix = "K10"

// Token is what a node knows of the cluster that it joins. Its String hides the password.
type Token struct {
	// Hash is the hash of the server CA in hex, or "" in a short token.
	Hash string
	// User is "server" or "node", or "" in a short token.
	User     string
	Password string
}

// String gives what may be logged.
func (t Token) String() string { return prefix + t.Hash + "::" + t.User + ":(hidden)" }

// Parse reads a short or a full token.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, errors.New("token must not be empty")
	}
	rest, full := strings.CutPrefix(text, prefix)
	if !full {
		return Token{Password: text}, nil
	}
	hash, credentials, divided := strings.Cut(rest, "::")
	if !divided {
		hash, credentials = "", rest
	}
	if decoded, err := hex.DecodeString(hash); hash != "" && (err != nil || len(decoded) != sha256.Size) {
		return Token{}, errors.New("invalid token CA hash length")
	}
	user, password, ok := strings.Cut(credentials, ":")
	if !ok || password == "" {
		return Token{}, errors.New("invalid token format")
	}
	return Token{Hash: hash, User: user, Password: password}, nil
}

// Format writes a full token for the CA bundle that the server hands out at /cacerts.
func Format(bundle []byte, user, password string) (string, error) {
	hash, err := HashCA(bundle)
	if err != nil {
		return "", err
	}
	return prefix + hash + "::" + user + ":" + password, nil
}

// HashCA gives the hash of a CA bundle in hex: of a self-signed certificate that stands alone, SHA-256 of the bundle's
// bytes as they are on disk; of a longer chain, that of the root's DER encoding.
func HashCA(bundle []byte) (string, error) {
	certificates, err := parseBundle(bundle)
	if err != nil {
		return "", err
	}
	hashed := bundle
	if len(certificates) > 1 {
		if root := rootOf(certificates); root != nil {
			hashed = root.Raw
		}
	}
	sum := sha256.Sum256(hashed)
	return hex.EncodeToString(sum[:]), nil
}

// VerifyCA checks the bundle that a server hands out against the token's hash. A short token has none.
func (t Token) VerifyCA(bundle []byte) error {
	hash, err := HashCA(bundle)
	if err != nil {
		return err
	}
	if t.Hash != "" && t.Hash != hash {
		return fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", t.Hash, hash)
	}
	return nil
}

// rootOf follows issuers from the bundle's first certificate to a self-signed one.
func rootOf(certificates []*x509.Certificate) *x509.Certificate {
	current := certificates[0]
	for range certificates {
		if current.CheckSignatureFrom(current) == nil {
			return current
		}
		issuer := issuerOf(current, certificates)
		if issuer == nil {
			return nil
		}
		current = issuer
	}
	return nil
}

func issuerOf(certificate *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, candidate := range among {
		if candidate != certificate && certificate.CheckSignatureFrom(candidate) == nil {
			return candidate
		}
	}
	return nil
}

func parseBundle(bundle []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing CA certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, certificate)
	}
	if len(certificates) == 0 {
		return nil, errors.New("CA bundle holds no certificate")
	}
	return certificates, nil
}

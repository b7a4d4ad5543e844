package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"nodezero.dev/rig/k3s/pki"
)

func TestParse(t *testing.T) {
	hash := strings.Repeat("0a", sha256.Size)
	tests := []struct {
		what, text string
		want       Token
		err        string
	}{
		{"empty", " \n", Token{}, "must not be empty"},
		{"short", "secret", Token{Password: "secret"}, ""},
		{"full", "K10" + hash + "::server:secret", Token{hash, "server", "secret"}, ""},
		{"full, of a node", "K10" + hash + "::node:secret\n", Token{hash, "node", "secret"}, ""},
		{"a password with colons", "K10" + hash + "::server:a:b::c", Token{hash, "server", "a:b::c"}, ""},
		{"without hash", "K10::server:secret", Token{"", "server", "secret"}, ""},
		{"a hash too short", "K100a0a::server:secret", Token{}, "invalid token CA hash length"},
		{"a hash that is none", "K10" + strings.Repeat("zz", 32) + "::server:secret", Token{}, "invalid token CA hash"},
		{"without password", "K10" + hash + "::server:", Token{}, "invalid token format"},
	}
	for _, test := range tests {
		got, err := Parse(test.text)
		if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: the error is %v, expected %q", test.what, err, test.err)
		}
		if got != test.want {
			t.Errorf("%s: the token is %#v, expected %#v", test.what, got, test.want)
		}
	}
}

func TestStringHidesThePassword(t *testing.T) {
	if text := (Token{Password: "secret"}).String(); strings.Contains(text, "secret") {
		t.Errorf("%s shows the password", text)
	}
}

func TestVerifyCA(t *testing.T) {
	own, other := authority(t, "own"), authority(t, "other")
	full, err := Format(own, "server", "secret")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(own)
	if want := "K10" + hex.EncodeToString(sum[:]) + "::server:secret"; full != want {
		t.Fatalf("the token is %s, expected %s", full, want)
	}
	parsed, err := Parse(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.VerifyCA(own); err != nil {
		t.Errorf("its own authority: %v", err)
	}
	if err := parsed.VerifyCA(other); err == nil || !strings.Contains(err.Error(), "token CA hash does not match") {
		t.Errorf("another authority: the error is %v", err)
	}
	if err := (Token{Password: "secret"}).VerifyCA(other); err != nil {
		t.Errorf("a short token takes any authority: %v", err)
	}
	if err := parsed.VerifyCA([]byte("nothing")); err == nil {
		t.Error("what is no certificate was taken")
	}
}

func TestChainIsHashedByItsRoot(t *testing.T) {
	root, intermediate := chain(t)
	hash, err := HashCA(append(append([]byte{}, intermediate...), root...))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(root)
	sum := sha256.Sum256(block.Bytes)
	if want := hex.EncodeToString(sum[:]); hash != want {
		t.Errorf("the hash is %s, expected the root's, %s", hash, want)
	}
}

// chain makes a root and an authority that it signs, both PEM.
func chain(t *testing.T) (root, intermediate []byte) {
	t.Helper()
	rootKey, otherKey := key(t), key(t)
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
		}
	}
	sign := func(name string, public *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template(name), template("root"), public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return sign("root", &rootKey.PublicKey), sign("intermediate", &otherKey.PublicKey)
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func authority(t *testing.T, name string) []byte {
	t.Helper()
	made, err := pki.EnsureAuthority(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	return made.Bundle
}

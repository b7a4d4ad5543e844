// Package nodepassword keeps the passwords by which K3s knows that a node that comes back is the one that came first.
//
// Specification: docs.k3s.io/architecture ("How Agent Node Registration Works"): the node keeps a random password in
// /etc/rancher/node/password, the cluster its hash in the Secret NAME.node-password.k3s of kube-system. The Secret goes
// with its Node.
package nodepassword

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/scrypt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Path is where a node keeps its own password.
const Path = "/etc/rancher/node/password"

// The costs of scrypt: an eighth of what is usual, for the sake of emulated processors. The passwords are random.
const (
	costLog   = 12
	blockSize = 8
	lanes     = 1
)

var errMismatch = errors.New("hash does not match")

// Rejected is what a node says when the server does not take its password.
func Rejected() string {
	return fmt.Sprintf("Node password rejected, duplicate hostname or contents of '%s' may not match server "+
		"node-passwd entry, try enabling a unique node name with the --with-node-id flag", Path)
}

// Own reads the node's password, or makes one.
func Own(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}
	if !os.IsNotExist(err) {
		return "", fmt.Errorf("reading node password: %w", err)
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	password := hex.EncodeToString(random)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("writing node password: %w", err)
	}
	if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("writing node password: %w", err)
	}
	return password, nil
}

// Ensure takes the password of a node that is new to the cluster, and compares it with the one kept otherwise.
// IsMismatch tells a wrong password from a cluster that does not answer.
func Ensure(ctx context.Context, client kubernetes.Interface, node, password string) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	kept, err := secrets.Get(ctx, secretName(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		hash, hashErr := Hash(password)
		if hashErr != nil {
			return hashErr
		}
		immutable := true
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: secretName(node)},
			Immutable:  &immutable,
			Data:       map[string][]byte{"hash": []byte(hash)},
		}
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		// An earlier request of the same node went on after the node had given it up.
		kept, err = secrets.Get(ctx, secretName(node), metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	if err := Verify(string(kept.Data["hash"]), password); err != nil {
		return fmt.Errorf("unable to verify hash for node '%s': %w", node, err)
	}
	return nil
}

// IsMismatch says whether Ensure refused a wrong password.
func IsMismatch(err error) bool { return errors.Is(err, errMismatch) }

// Delete forgets a node.
func Delete(ctx context.Context, client kubernetes.Interface, node string) error {
	err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, secretName(node), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Hash derives what the cluster keeps: salt and key in hex, divided by a colon.
func Hash(password string) (string, error) {
	salt := make([]byte, 8)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	key, err := derive(password, salt)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(salt) + ":" + hex.EncodeToString(key), nil
}

// Verify compares a password with what Hash made.
func Verify(hash, password string) error {
	saltText, keyText, _ := strings.Cut(hash, ":")
	salt, saltErr := hex.DecodeString(saltText)
	want, keyErr := hex.DecodeString(keyText)
	if saltErr != nil || keyErr != nil || len(want) == 0 {
		return errMismatch
	}
	key, err := derive(password, salt)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(key, want) != 1 {
		return errMismatch
	}
	return nil
}

func derive(password string, salt []byte) ([]byte, error) {
	return scrypt.Key([]byte(password), salt, 1<<costLog, blockSize, lanes, 32)
}

func secretName(node string) string { return strings.ToLower(node) + ".node-password.k3s" }

package nodepassword

import (
	"context"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEnsure(t *testing.T) {
	ctx, client := context.Background(), fake.NewClientset()
	steps := []struct {
		what, node, password string
		mismatch             bool
	}{
		{"a new node", "worker-1", "one", false},
		{"the same again", "worker-1", "one", false},
		{"the same in capitals", "Worker-1", "one", false},
		{"another machine under its name", "worker-1", "two", true},
		{"another node", "worker-2", "two", false},
	}
	for _, step := range steps {
		if err := Ensure(ctx, client, step.node, step.password); IsMismatch(err) != step.mismatch {
			t.Errorf("%s: the error is %v, expected a mismatch: %v", step.what, err, step.mismatch)
		}
	}
	secret, err := client.CoreV1().Secrets("kube-system").Get(ctx, "worker-1.node-password.k3s", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if secret.Immutable == nil || !*secret.Immutable || string(secret.Data["hash"]) == "one" {
		t.Errorf("the secret is %v", secret)
	}
	if err := Delete(ctx, client, "worker-1"); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(ctx, client, "worker-1", "two"); err != nil {
		t.Errorf("another machine, admitted anew: %v", err)
	}
}

func TestOwnIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node", "password")
	first, err := Own(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Own(path)
	if err != nil || first != second || len(first) != 32 {
		t.Errorf("the password is %q, then %q (%v)", first, second, err)
	}
}

func TestVerify(t *testing.T) {
	hash, err := Hash("secret")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		what, hash, password string
		ok                   bool
	}{
		{"the password", hash, "secret", true},
		{"another", hash, "Secret", false},
		{"a changed hash", hash[:len(hash)-1] + flip(hash[len(hash)-1]), "secret", false},
		{"no hash", "", "secret", false},
		{"a hash without key", "00:", "secret", false},
	}
	for _, test := range tests {
		if err := Verify(test.hash, test.password); (err == nil) != test.ok {
			t.Errorf("%s: the error is %v", test.what, err)
		}
	}
}

func flip(digit byte) string {
	if digit == '0' {
		return "1"
	}
	return "0"
}

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// files are written to the directory of config.yaml; the expected lists are by option.
var loads = []struct {
	what  string
	files map[string]string
	args  []string
	env   map[string]string
	want  map[string][]string
}{
	{
		what: "defaults",
		want: map[string][]string{
			"cluster-cidr": {"10.42.0.0/16"}, "service-cidr": {"10.43.0.0/16"}, "data-dir": {"/var/lib/rancher/k3s"},
			"node-label": nil,
		},
	},
	{
		what: "the example of K3s' documentation: the last file counts, a key with + appends",
		files: map[string]string{
			"config.yaml":            "token: boop\nnode-label:\n- foo=bar\n- bar=baz\n",
			"config.yaml.d/1.yaml":   "write-kubeconfig-mode: 600\nnode-taint:\n- alice=bob:NoExecute\n",
			"config.yaml.d/2.yaml":   "write-kubeconfig-mode: 777\nnode-label:\n- other=what\n- foo=three\nnode-taint+:\n- charlie=delta:NoSchedule\n",
			"config.yaml.d/3.ignore": "token: other\n",
		},
		want: map[string][]string{
			"write-kubeconfig-mode": {"777"}, "token": {"boop"}, "node-label": {"other=what", "foo=three"},
			"node-taint": {"alice=bob:NoExecute", "charlie=delta:NoSchedule"},
		},
	},
	{
		what:  "arguments replace what files say, also lists",
		files: map[string]string{"config.yaml": "token: file\nnode-label: [a=1, b=2]\n"},
		args:  []string{"--token=argument", "--node-label", "c=3", "--node-label=d=4"},
		env:   map[string]string{"K3S_TOKEN": "environment", "K3S_NODE_NAME": "named"},
		want:  map[string][]string{"token": {"argument"}, "node-label": {"c=3", "d=4"}, "node-name": {"named"}},
	},
	{
		what:  "files replace what the environment says",
		files: map[string]string{"config.yaml": "token: file\n"},
		env:   map[string]string{"K3S_TOKEN": "environment"},
		want:  map[string][]string{"token": {"file"}},
	},
	{
		what:  "a value holds several, but not in arguments of components",
		files: map[string]string{"config.yaml": "tls-san: a,b\nkubelet-arg: [max-pods=10, \"v=1,2\"]\n"},
		want:  map[string][]string{"tls-san": {"a", "b"}, "kubelet-arg": {"max-pods=10", "v=1,2"}},
	},
	{
		what:  "keys that K3s does not know are skipped",
		files: map[string]string{"config.yaml": "no-such-option: 1\ntoken: file\n"},
		want:  map[string][]string{"token": {"file"}},
	},
	{
		what: "short options",
		args: []string{"-t", "short", "-i", "192.0.2.1"},
		want: map[string][]string{"token": {"short"}, "node-ip": {"192.0.2.1"}},
	},
}

func TestLoad(t *testing.T) {
	for _, test := range loads {
		directory := t.TempDir()
		write(t, directory, test.files)
		env := map[string]string{"K3S_CONFIG_FILE": ""}
		for name, value := range test.env {
			env[name] = value
		}
		args := test.args
		if test.files != nil {
			args = append([]string{"--config", filepath.Join(directory, "config.yaml")}, args...)
		}
		config, err := Load(Server, args, func(name string) string { return env[name] })
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		for name, want := range test.want {
			if got := config.List(name); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s is %q, expected %q", test.what, name, got, want)
			}
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := []struct {
		what, command string
		files         map[string]string
		args          []string
		want          string
	}{
		{"an unknown argument", Server, nil, []string{"--no-such"}, "flag provided but not defined: -no-such"},
		{"an argument without its value", Server, nil, []string{"--token"}, "flag needs an argument: -token"},
		{"what is no option", Agent, nil, []string{"now"}, "takes options alone"},
		{"an option of the server alone", Agent, nil, []string{"--tls-san=a"}, "flag provided but not defined"},
		{"an option that is not honoured", Server, nil, []string{"--cluster-init"}, "does not honour"},
		{"the same in a file", Server, map[string]string{"config.yaml": "cluster-init: true\n"}, nil, "does not honour"},
		{"a file that is no YAML", Server, map[string]string{"config.yaml": "a: [\n"}, nil, "config.yaml"},
		{"a file that is named and not there", Server, nil, []string{"-c", "/no/such.yaml"}, "/no/such.yaml"},
	}
	for _, test := range tests {
		directory := t.TempDir()
		write(t, directory, test.files)
		args := test.args
		if test.files != nil {
			args = append(args, "--config", filepath.Join(directory, "config.yaml"))
		}
		_, err := Load(test.command, args, func(string) string { return "" })
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: the error is %v, expected one with %q", test.what, err, test.want)
		}
	}
}

func TestSecret(t *testing.T) {
	directory := t.TempDir()
	write(t, directory, map[string]string{"secret": "from-file\n"})
	file := "--token-file=" + filepath.Join(directory, "secret")
	tests := []struct {
		what string
		args []string
		want string
	}{
		{"none", nil, ""},
		{"a file", []string{file}, "from-file"},
		{"both", []string{file, "--token=given"}, "given"},
	}
	for _, test := range tests {
		config, err := Load(Agent, test.args, func(string) string { return "" })
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		if got, err := config.Secret("token"); err != nil || got != test.want {
			t.Errorf("%s: the token is %q (%v), expected %q", test.what, got, err, test.want)
		}
	}
}

func write(t *testing.T, directory string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Package config reads K3s' options from its three sources: command line before configuration files before environment.
//
// Specification: docs.k3s.io/installation/configuration ("Configuration File", "Multiple Config Files"),
// docs.k3s.io/cli/server and docs.k3s.io/cli/agent. Left out: configuration files behind a URL.
package config

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"go.yaml.in/yaml/v2"

	"nodezero.dev/rig/k3s/log"
)

// The two commands that take options.
const (
	Server = "server"
	Agent  = "agent"
)

// Config holds what was asked for. An option that no source names has its documented default.
type Config struct {
	// Command is Server or Agent.
	Command string
	values  map[string][]string
}

// Load reads the options of a command from its arguments, the configuration files that they or the environment name,
// and the environment. Arguments that K3s does not know are an error; keys of a file that it does not know are skipped
// with a warning, as K3s does; options of K3s that the stand-in cannot honour are an error wherever they stand.
func Load(command string, args []string, env func(string) string) (*Config, error) {
	given, err := parseArgs(command, args)
	if err != nil {
		return nil, err
	}
	config := &Config{Command: command, values: map[string][]string{}}
	config.takeDefaults(env)
	path := config.Text("config")
	named := env("K3S_CONFIG_FILE") != ""
	if values, ok := given["config"]; ok {
		path, named = values[len(values)-1], true
	}
	files, err := readFiles(command, path, named)
	if err != nil {
		return nil, err
	}
	for _, source := range []map[string][]string{files, given} {
		for name, values := range source {
			config.values[name] = values
		}
	}
	return config, nil
}

// Text gives the value of an option that has one, or "".
func (c *Config) Text(name string) string {
	values := c.values[name]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// First gives the first of the values of a list, or "".
func (c *Config) First(name string) string {
	values := c.List(name)
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// List gives the values of an option that may have several.
func (c *Config) List(name string) []string {
	var list []string
	for _, value := range c.values[name] {
		if strings.HasSuffix(name, "-arg") {
			list = append(list, value)
			continue
		}
		for _, part := range strings.Split(value, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
	}
	return list
}

// Path joins a path to the data directory.
func (c *Config) Path(elements ...string) string {
	return filepath.Join(append([]string{c.Text("data-dir")}, elements...)...)
}

// Secret gives a token from its option, or from the file that the option with the suffix "-file" names.
func (c *Config) Secret(name string) (string, error) {
	if value := c.Text(name); value != "" {
		return value, nil
	}
	path := c.Text(name + "-file")
	if path == "" {
		return "", nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return strings.TrimSpace(string(content)), nil
}

// takeDefaults fills in the documented defaults and what the environment says.
func (c *Config) takeDefaults(env func(string) string) {
	for name, entry := range honoured {
		if _, known := find(name, c.Command); !known {
			continue
		}
		if value := env(entry.env); entry.env != "" && value != "" {
			c.values[name] = []string{value}
		} else if entry.fallback != "" {
			c.values[name] = []string{entry.fallback}
		}
	}
}

// parseArgs reads "--name value", "--name=value", "-s value" and switches without a value.
func parseArgs(command string, args []string) (map[string][]string, error) {
	given := map[string][]string{}
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			return nil, fmt.Errorf("invalid argument %q: %s takes options alone", args[i], command)
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !strings.HasPrefix(args[i], "--") {
			name = longName(name)
		}
		entry, known := find(name, command)
		switch {
		case !known:
			return nil, fmt.Errorf("flag provided but not defined: -%s", name)
		case entry.notHonoured:
			return nil, refusal(name)
		case hasValue:
		case entry.kind == Switch:
			value = "true"
		case i+1 == len(args):
			return nil, fmt.Errorf("flag needs an argument: -%s", name)
		default:
			i++
			value = args[i]
		}
		given[name] = append(given[name], value)
	}
	return given, nil
}

// readFiles merges config.yaml and, in alphabetical order, the YAML files of config.yaml.d.
func readFiles(command, path string, named bool) (map[string][]string, error) {
	dropIns, err := filepath.Glob(path + ".d/*")
	if err != nil {
		return nil, fmt.Errorf("listing %s.d: %w", path, err)
	}
	sort.Strings(dropIns)
	paths := []string{}
	if _, err := os.Stat(path); err == nil || named {
		paths = append(paths, path)
	}
	for _, dropIn := range dropIns {
		if strings.HasSuffix(dropIn, ".yaml") || strings.HasSuffix(dropIn, ".yml") {
			paths = append(paths, dropIn)
		}
	}
	merged := map[string][]string{}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if err := mergeFile(merged, command, path, content); err != nil {
			return nil, err
		}
	}
	return merged, nil
}

// mergeFile lays one file over those before it: a key replaces, a key with "+" appends.
func mergeFile(merged map[string][]string, command, path string, content []byte) error {
	var keys yaml.MapSlice
	if err := yaml.Unmarshal(content, &keys); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	for _, entry := range keys {
		name, appends := strings.CutSuffix(fmt.Sprint(entry.Key), "+")
		name = strings.TrimLeft(name, "-")
		known, ok := find(name, command)
		if !ok {
			log.Warn("Unknown flag --%s found in %s, skipping", name, filepath.Base(path))
			continue
		}
		if known.notHonoured {
			return fmt.Errorf("reading %s: %w", path, refusal(name))
		}
		values := toValues(entry.Value)
		if appends {
			values = append(merged[name], values...)
		}
		merged[name] = values
	}
	return nil
}

func toValues(value any) []string {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var values []string
	for _, element := range list {
		if element == nil {
			element = ""
		}
		values = append(values, fmt.Sprint(element))
	}
	return values
}

func refusal(name string) error {
	return fmt.Errorf("--%s is an option of K3s that this stand-in does not honour", name)
}

package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"tailscale.com/types/key"
)

// A Node is a machine that joined.
type Node struct {
	ID       int
	Name     string // first label of its name; its host name, with a number where that was taken
	Hostname string
	Machine  key.MachinePublic
	Key      key.NodePublic
	Tags     []string
	Expired  bool // its key is no longer good: it has to show an auth key again
	Deleted  bool
}

// state is what a restart of the server keeps: keys of its own, ports, auth keys and nodes.
type state struct {
	path string // nothing is kept where it is empty

	Noise       key.MachinePrivate
	Relay       key.NodePrivate
	Certificate []byte // PEM, of the relay
	PrivateKey  []byte // PEM
	Ports       ports
	AuthKeys    []*authKey
	Nodes       []*Node
}

// ports are the ones that were listened on.
type ports struct{ Control, Relay, STUN, Admin int }

// readState reads the state, or begins a new one.
func readState(path string) (*state, error) {
	fresh := &state{path: path, Noise: key.NewMachine(), Relay: key.NewNode()}
	var err error
	if fresh.Certificate, fresh.PrivateKey, err = newCertificate(); err != nil || path == "" {
		return fresh, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if err := json.Unmarshal(text, fresh); err != nil {
		return nil, fmt.Errorf("parsing %s: %w", path, err)
	}
	return fresh, nil
}

// write puts the state on disk, whole or not at all.
func (s *state) write() error {
	if s.path == "" {
		return nil
	}
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("writing the state as JSON: %w", err)
	}
	if err := os.WriteFile(s.path+".new", text, 0o600); err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return os.Rename(s.path+".new", s.path)
}

// node finds the node of a machine.
func (s *state) node(machine key.MachinePublic) *Node {
	for _, node := range s.Nodes {
		if node.Machine == machine && !node.Deleted {
			return node
		}
	}
	return nil
}

// named finds a node by its name.
func (s *state) named(name string) *Node {
	for _, node := range s.Nodes {
		if node.Name == name && !node.Deleted {
			return node
		}
	}
	return nil
}

// freeName gives a name that no node has, as Tailscale's control server does.
func (s *state) freeName(hostname string) string {
	name := hostname
	for number := 1; s.named(name) != nil; number++ {
		name = hostname + "-" + strconv.Itoa(number)
	}
	return name
}

// key finds an auth key.
func (s *state) key(name string) *authKey {
	for _, known := range s.AuthKeys {
		if known.Key == name {
			return known
		}
	}
	return nil
}

// addKey adds an auth key, or changes what it is good for.
func (s *state) addKey(added *authKey) {
	if known := s.key(added.Key); known != nil {
		added.Used = known.Used
		*known = *added
		return
	}
	s.AuthKeys = append(s.AuthKeys, added)
}

// dropKey forgets an auth key.
func (s *state) dropKey(name string) {
	s.AuthKeys = slices.DeleteFunc(s.AuthKeys, func(known *authKey) bool { return known.Key == name })
}

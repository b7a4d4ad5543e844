package mesh

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func TestAuthKeysAreParsed(t *testing.T) {
	for _, c := range []struct{ text, want, fails string }{
		{text: "k", want: `{"Key":"k","Once":false,"Expired":false,"Tags":null,"Used":0}`},
		{text: "k,once,tags=tag:a+tag:b", want: `{"Key":"k","Once":true,"Expired":false,"Tags":["tag:a","tag:b"],"Used":0}`},
		{text: "k,expired", want: `{"Key":"k","Once":false,"Expired":true,"Tags":null,"Used":0}`},
		{text: "", fails: "is empty"},
		{text: "a b", fails: "space or slash"},
		{text: "k,twice", fails: `unknown word "twice"`},
	} {
		parsed, err := parseAuthKey(c.text)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%q: %v, want an error with %q", c.text, err, c.fails)
			}
			continue
		}
		if got, _ := json.Marshal(parsed); err != nil || string(got) != c.want {
			t.Errorf("%q: %s, %v, want %s", c.text, got, err, c.want)
		}
	}
}

func start(t *testing.T, state string, keys ...string) *Server {
	t.Helper()
	loopback := netip.MustParseAddr("127.0.0.1")
	s, err := Start(Config{Listen: netip.AddrPortFrom(loopback, 0), Guest: loopback, State: state, AuthKeys: keys, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A machine as the control server sees one.
type machine struct {
	hostname string
	tags     []string
	peer     key.MachinePublic
	node     key.NodePublic
}

func newMachine(hostname string, tags ...string) *machine {
	return &machine{hostname, tags, key.NewMachine().Public(), key.NewNode().Public()}
}

// join gives what came of it: "joined", "log in", "expired", or the refusal.
func (m *machine) join(t *testing.T, s *Server, authKey string) string {
	t.Helper()
	request := &tailcfg.RegisterRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: m.node,
		Hostinfo: &tailcfg.Hostinfo{Hostname: m.hostname, RequestTags: m.tags},
	}
	if authKey != "" {
		request.Auth = &tailcfg.RegisterResponseAuth{AuthKey: authKey}
	}
	answer, err := s.register(context.Background(), request, m.peer)
	switch {
	case err != nil:
		t.Fatalf("%s: %v", m.hostname, err)
	case answer.Error != "":
		return answer.Error
	case answer.AuthURL != "":
		return "log in"
	case answer.NodeKeyExpired:
		return "expired"
	}
	return "joined"
}

func TestMachinesJoinWithAGoodKeyAlone(t *testing.T) {
	s := start(t, "", "good", "one,once", "old,expired", "tagged,tags=tag:a")
	defer s.Close()
	for _, c := range []struct {
		machine *machine
		key     string
		want    string
	}{
		{newMachine("a"), "", "log in"},
		{newMachine("a"), "bad", "does not exist"},
		{newMachine("a"), "old", "has expired"},
		{newMachine("a"), "one", "joined"},
		{newMachine("b"), "one", "used already"},
		{newMachine("a"), "good", "joined"},
		{newMachine("c", "tag:a"), "tagged", "joined"},
		{newMachine("d", "tag:b"), "tagged", "requested tags [tag:b]"},
	} {
		if got := c.machine.join(t, s, c.key); !strings.Contains(got, c.want) {
			t.Errorf("%s with %q: %s, want %s", c.machine.hostname, c.key, got, c.want)
		}
	}
	var names []string
	for _, node := range s.nodes() {
		names = append(names, node.Name+"="+node.Addresses[0])
	}
	if got := strings.Join(names, " "); got != "a=100.64.0.1 a-1=100.64.0.2 c=100.64.0.3" {
		t.Error(got)
	}
}

func TestAStateOutlivesTheServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	first := start(t, path, "good")
	a, b := newMachine("a"), newMachine("b")
	for _, machine := range []*machine{a, b} {
		if got := machine.join(t, first, "good"); got != "joined" {
			t.Fatal(got)
		}
	}
	addresses := first.Addresses
	admin(t, first, http.MethodDelete, "/nodes/a")
	admin(t, first, http.MethodPost, "/nodes/b/expire")
	first.Close()

	again := start(t, path)
	defer again.Close()
	if again.Addresses != addresses {
		t.Errorf("%v, want %v", again.Addresses, addresses)
	}
	if got := a.join(t, again, ""); got != "log in" {
		t.Errorf("a deleted machine: %s", got)
	}
	if got := b.join(t, again, ""); got != "expired" {
		t.Errorf("a machine whose key has expired: %s", got)
	}
	if got := b.join(t, again, "good"); got != "joined" {
		t.Errorf("with an auth key again: %s", got)
	}
	if nodes := again.nodes(); len(nodes) != 1 || nodes[0].Name != "b" || nodes[0].Addresses[0] != "100.64.0.2" {
		t.Errorf("%v", nodes)
	}
}

func TestTheServerCanBeOutOfOrder(t *testing.T) {
	s := start(t, "")
	defer s.Close()
	for _, c := range []struct {
		mode Mode
		want int
	}{{ModeUp, 200}, {ModeError, 500}, {ModeRefuse, 0}, {ModeUp, 200}, {ModeRefuse, 0}, {ModeError, 500}} {
		admin(t, s, http.MethodPost, "/control/"+string(c.mode))
		got := 0
		if answer, err := http.Get(s.Addresses.Control + "/key?v=141"); err == nil {
			answer.Body.Close()
			got = answer.StatusCode
		}
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.mode, got, c.want)
		}
	}
}

// Who was kept waiting by a silent server gets no answer when it is well again, and may ask once more.
func TestWhoWaitsForASilentServerIsLetGo(t *testing.T) {
	s := start(t, "")
	defer s.Close()
	admin(t, s, http.MethodPost, "/control/hang")
	asked := make(chan error)
	go func() {
		answer, err := http.Get(s.Addresses.Control + "/key?v=141")
		if err == nil {
			answer.Body.Close()
		}
		asked <- err
	}()
	select {
	case err := <-asked:
		t.Fatalf("a silent server answers: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	admin(t, s, http.MethodPost, "/control/up")
	if err := <-asked; err == nil {
		t.Error("it answers in the end")
	}
	answer, err := http.Get(s.Addresses.Control + "/key?v=141")
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", answer, err)
	}
}

func admin(t *testing.T, s *Server, method, path string) {
	t.Helper()
	request, err := http.NewRequest(method, s.Addresses.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		t.Fatalf("%s %s: %s", method, path, answer.Status)
	}
}

package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlbase"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	// The largest message of a machine that is read, in bytes.
	messageLimit = 1 << 20
	// How long a key lasts that nobody expired.
	keyLifetime = 180 * 24 * time.Hour
)

// serveControl is the control server as machines see it: /key, and the upgrade to its encrypted protocol.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	switch s.currentMode() {
	case ModeHang:
		s.hang(r.Context())
		panic(http.ErrAbortHandler) // who was kept waiting gets no answer, but may ask again
	case ModeError:
		http.Error(w, "the control server is out of order, as asked for", http.StatusInternalServerError)
		return
	case ModeUp, ModeRefuse:
	}
	switch r.URL.Path {
	case "/key":
		s.serveKey(w)
	case "/ts2021":
		s.serveNoise(w, r)
	case "/generate_204":
		w.WriteHeader(http.StatusNoContent)
	default:
		// testcontrol ends the whole process over paths that it does not know.
		http.NotFound(w, r)
	}
}

func (s *Server) serveKey(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	answer := tailcfg.OverTLSPublicKeyResponse{PublicKey: s.state.Noise.Public(), LegacyPublicKey: s.state.Noise.Public()}
	_ = json.NewEncoder(w).Encode(answer) // who has gone needs no answer
}

// serveNoise speaks the encrypted protocol with one machine. testcontrol could do so, too, but it keeps its key to itself
// and takes one auth key for all, which it wants to see again at each start.
func (s *Server) serveNoise(w http.ResponseWriter, r *http.Request) {
	connection, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, s.state.Noise, nil)
	if err != nil {
		s.logf("accepting a machine: %v", err)
		return
	}
	defer connection.Close()
	if !s.track(connection) {
		return
	}
	defer s.forget(connection)
	peer := connection.Peer()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveMachine(w, r, peer) })
	var server http2.Server
	server.ServeConn(connection, &http2.ServeConnOpts{Context: r.Context(), BaseConfig: &http.Server{Handler: handler}})
}

// serveMachine answers one request of the machine with this key.
func (s *Server) serveMachine(w http.ResponseWriter, r *http.Request, peer key.MachinePublic) {
	switch {
	case r.URL.Path == "/machine/register":
		s.serveRegister(w, r, peer)
	case r.URL.Path == "/machine/map", r.URL.Path == "/machine/update-health":
		s.inner.ServeHTTP(w, r.WithContext(machineContext{r.Context(), peer}))
	default:
		http.NotFound(w, r)
	}
}

// machineContext tells testcontrol which machine a request is from, as its own end of the encrypted protocol would. The
// key of that value is of a private type, so that it is known by its name.
type machineContext struct {
	context.Context
	peer key.MachinePublic
}

func (c machineContext) Value(asked any) any {
	if fmt.Sprintf("%T", asked) == "testcontrol.peerMachinePublicContextKey" {
		return c.peer
	}
	return c.Context.Value(asked)
}

func (s *Server) serveRegister(w http.ResponseWriter, r *http.Request, peer key.MachinePublic) {
	var request tailcfg.RegisterRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, messageLimit)).Decode(&request); err != nil || request.Hostinfo == nil {
		http.Error(w, fmt.Sprintf("not a register request: %v", err), http.StatusBadRequest)
		return
	}
	if request.Followup != "" {
		s.hang(r.Context()) // nobody logs in by hand
		return
	}
	answer, err := s.register(r.Context(), &request, peer)
	if err != nil {
		s.logf("registering %s: %v", request.Hostinfo.Hostname, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(answer) // who has gone asks again
}

// register lets a machine in, or says why not.
func (s *Server) register(ctx context.Context, request *tailcfg.RegisterRequest, peer key.MachinePublic) (*tailcfg.RegisterResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	event := Registration{Hostname: request.Hostinfo.Hostname, WithKey: request.Auth != nil && request.Auth.AuthKey != ""}
	defer func() { s.registrations = append(s.registrations, event) }()

	node := s.state.node(peer)
	if !request.Expiry.IsZero() && request.Expiry.Before(time.Now()) {
		event.Result = "logged out"
		if node == nil {
			return &tailcfg.RegisterResponse{NodeKeyExpired: true}, nil
		}
		node.Expired = true
		return &tailcfg.RegisterResponse{NodeKeyExpired: true}, s.publish(node)
	}
	known := node != nil && node.Key == request.NodeKey
	if known && !node.Expired {
		event.Name, event.Result = node.Name, "known"
		return s.registerInner(ctx, request, peer)
	}
	if !event.WithKey {
		if known {
			event.Result = "key expired"
			return &tailcfg.RegisterResponse{NodeKeyExpired: true}, nil
		}
		event.Result = "to log in by hand"
		return &tailcfg.RegisterResponse{AuthURL: s.controlURL + "/auth/nobody-is-there"}, nil
	}
	auth := s.state.key(request.Auth.AuthKey)
	if refusal := auth.refuse(request.Hostinfo.RequestTags); refusal != "" {
		event.Result = refusal
		return &tailcfg.RegisterResponse{Error: refusal}, nil
	}
	auth.Used++
	if node == nil {
		node = &Node{ID: len(s.state.Nodes) + 1, Machine: peer, Hostname: request.Hostinfo.Hostname}
		node.Name = s.state.freeName(node.Hostname)
		s.state.Nodes = append(s.state.Nodes, node)
		request.OldNodeKey = key.NodePublic{}
	} else {
		request.OldNodeKey = node.Key
	}
	node.Key, node.Tags, node.Expired = request.NodeKey, request.Hostinfo.RequestTags, false
	event.Name, event.Result = node.Name, "joined"
	answer, err := s.registerInner(ctx, request, peer)
	return answer, errors.Join(err, s.publish(node))
}

// registerInner has testcontrol take a machine in.
func (s *Server) registerInner(ctx context.Context, request *tailcfg.RegisterRequest, peer key.MachinePublic) (*tailcfg.RegisterResponse, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("writing a register request: %w", err)
	}
	inner := httptest.NewRequestWithContext(machineContext{ctx, peer}, http.MethodPost, "/machine/register", strings.NewReader(string(body)))
	recorded := httptest.NewRecorder()
	s.inner.ServeHTTP(recorded, inner)
	var answer tailcfg.RegisterResponse
	if err := json.Unmarshal(recorded.Body.Bytes(), &answer); err != nil || recorded.Code != http.StatusOK {
		return nil, fmt.Errorf("testcontrol answered %d %q: %w", recorded.Code, recorded.Body, err)
	}
	return &answer, nil
}

// publish tells all machines what this node is now, and writes the state.
func (s *Server) publish(node *Node) error {
	s.publishInner(node)
	return s.state.write()
}

func (s *Server) publishInner(node *Node) {
	inner := s.inner.Node(node.Key)
	if inner == nil {
		return
	}
	name := node.Name
	if node.Deleted {
		name = "deleted-" + strconv.Itoa(node.ID)
	}
	inner.Name = name + "." + Domain + "."
	inner.Tags = slices.Clone(node.Tags)
	inner.KeyExpiry, inner.Expired = time.Now().Add(keyLifetime), false
	if node.Expired || node.Deleted {
		inner.KeyExpiry, inner.Expired = time.Now().Add(-time.Minute), true
	}
	s.inner.UpdateNode(inner)
}

// replay has testcontrol know what the state knows. It numbers nodes, and so their addresses, in the order that they
// came in.
func (s *Server) replay() error {
	for _, node := range s.state.Nodes {
		request := &tailcfg.RegisterRequest{
			Version: tailcfg.CurrentCapabilityVersion, NodeKey: node.Key, Hostinfo: &tailcfg.Hostinfo{Hostname: node.Hostname},
		}
		if _, err := s.registerInner(context.Background(), request, node.Machine); err != nil {
			return fmt.Errorf("registering %s again: %w", node.Name, err)
		}
		s.publishInner(node)
	}
	return nil
}

// track keeps a connection, so that it can be cut; it says false where machines are not served now.
func (s *Server) track(connection *controlbase.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode != ModeUp {
		return false
	}
	s.connections[connection] = true
	return true
}

func (s *Server) forget(connection *controlbase.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connections, connection)
}

// hang waits until the other side has enough, the mode changes, or the server ends.
func (s *Server) hang(ctx context.Context) {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-s.ended:
	}
}

package mesh

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// adminHandler is the interface for tests:
//
//	GET    /nodes                what joined
//	DELETE /nodes/NAME           delete a node; its name is free again
//	POST   /nodes/NAME/expire    its key is no longer good
//	POST   /nodes/NAME/rename/TO give it another name, which must be free
//	POST   /keys                 add an auth key, or change it; the body is as after --auth-key
//	DELETE /keys/KEY             forget an auth key
//	POST   /control/MODE         up, refuse, hang, error
//	GET    /registrations        the attempts to join, in order
//
// It answers 204, or JSON, or an error as text.
func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) { respond(w, s.nodes()) })
	mux.HandleFunc("GET /registrations", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		respond(w, append([]Registration{}, s.registrations...))
	})
	mux.HandleFunc("DELETE /nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		s.change(w, r.PathValue("name"), func(node *Node) { node.Deleted = true })
	})
	mux.HandleFunc("POST /nodes/{name}/expire", func(w http.ResponseWriter, r *http.Request) {
		s.change(w, r.PathValue("name"), func(node *Node) { node.Expired = true })
	})
	mux.HandleFunc("POST /nodes/{name}/rename/{to}", func(w http.ResponseWriter, r *http.Request) {
		to := r.PathValue("to")
		s.mu.Lock()
		taken := s.state.named(to) != nil
		s.mu.Unlock()
		if taken {
			http.Error(w, fmt.Sprintf("there is a node %q", to), http.StatusConflict)
			return
		}
		s.change(w, r.PathValue("name"), func(node *Node) { node.Name = to })
	})
	mux.HandleFunc("POST /keys", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, messageLimit))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		added, err := parseAuthKey(strings.TrimSpace(string(text)))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.keep(w, func() { s.state.addKey(added) })
	})
	mux.HandleFunc("DELETE /keys/{key}", func(w http.ResponseWriter, r *http.Request) {
		s.keep(w, func() { s.state.dropKey(r.PathValue("key")) })
	})
	mux.HandleFunc("POST /control/{mode}", func(w http.ResponseWriter, r *http.Request) {
		switch mode := Mode(r.PathValue("mode")); mode {
		case ModeUp, ModeRefuse, ModeHang, ModeError:
			finish(w, s.SetMode(mode))
		default:
			http.Error(w, fmt.Sprintf("%q is none of up, refuse, hang, error", mode), http.StatusNotFound)
		}
	})
	return mux
}

// nodeView is a node for a test.
type nodeView struct {
	Name      string   `json:"name"`
	Hostname  string   `json:"hostname"`
	Addresses []string `json:"addresses"`
	Tags      []string `json:"tags"`
	Expired   bool     `json:"expired"`
	Polling   bool     `json:"polling"` // it has told where it can be reached
}

func (s *Server) nodes() []nodeView {
	s.mu.Lock()
	defer s.mu.Unlock()
	views := []nodeView{}
	for _, node := range s.state.Nodes {
		inner := s.inner.Node(node.Key)
		if node.Deleted || inner == nil {
			continue
		}
		view := nodeView{Name: node.Name, Hostname: node.Hostname, Tags: node.Tags, Expired: node.Expired, Polling: !inner.DiscoKey.IsZero()}
		for _, address := range inner.Addresses {
			view.Addresses = append(view.Addresses, address.Addr().String())
		}
		views = append(views, view)
	}
	return views
}

// change changes a node, and tells the others.
func (s *Server) change(w http.ResponseWriter, name string, change func(*Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := s.state.named(name)
	if node == nil {
		http.Error(w, fmt.Sprintf("there is no node %q", name), http.StatusNotFound)
		return
	}
	change(node)
	finish(w, s.publish(node))
}

// keep changes the state, and writes it.
func (s *Server) keep(w http.ResponseWriter, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	finish(w, s.state.write())
}

func finish(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func respond(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // who has gone needs no answer
}

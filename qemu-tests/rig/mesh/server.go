// Package mesh is a mesh for tests: Tailscale's own test control server, relay (DERP) and STUN on loopback.
//
// What machines see of it is what they see of a real one: its encrypted protocol, auth keys that are good once, expired,
// or bound to tags, names made unique by a number, keys of nodes that expire, nodes that are deleted, and a server that
// does not answer. Which of these is the case is told by flags and by an HTTP interface on loopback (admin.go).
//
// tailscale.com/tstest/integration/testcontrol keeps the netmap and answers machines' polls. In front of it stands what
// it has not: auth keys per machine, and a state that outlives the process. Left out: users, access rules (everything is
// open), tailnet lock, routes, and logins by hand.
package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/derp/derpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

const (
	// Domain is what the names of nodes end in.
	Domain = "mesh.test"
	// relayName is what the relay is called. Nobody resolves it.
	relayName = "relay.mesh.test"
	// How long a machine may take to send a request's head.
	headPatience = 30 * time.Second
)

// Config says how the server runs.
type Config struct {
	Listen   netip.AddrPort // of the control server; with port 0, the state's or any
	Guest    netip.Addr     // at which machines reach that address
	State    string         // file; nothing outlives the process where it is empty
	AuthKeys []string       // see parseAuthKey
	Logf     func(format string, arguments ...any)
}

// Addresses are where the server is.
type Addresses struct {
	Control string `json:"control"` // URL on this host
	Guest   string `json:"guest"`   // URL for machines
	Admin   string `json:"admin"`   // URL of the HTTP interface
	DERP    string `json:"derp"`
	STUN    string `json:"stun"`
	Domain  string `json:"domain"`
}

// A Mode is how the control server behaves.
type Mode string

// The modes.
const (
	ModeUp     Mode = "up"
	ModeRefuse Mode = "refuse" // nothing listens
	ModeHang   Mode = "hang"   // connections are accepted and nothing is answered
	ModeError  Mode = "error"  // everything is answered with status 500
)

// A Registration is an attempt of a machine to join, or to come back.
type Registration struct {
	Hostname string `json:"hostname"`
	Name     string `json:"name"` // empty where it was refused
	WithKey  bool   `json:"withKey"`
	Result   string `json:"result"`
}

// Server is a mesh. Make one with Start.
type Server struct {
	Addresses Addresses

	logf       func(format string, arguments ...any)
	guest      netip.Addr
	listen     netip.AddrPort
	controlURL string
	inner      *testcontrol.Server
	relay      *derpserver.Server
	ended      chan struct{}
	closers    []func() error

	mu            sync.Mutex // guards what follows
	state         *state
	mode          Mode
	changed       chan struct{} // closed when the mode changes
	control       *http.Server
	connections   map[*controlbase.Conn]bool
	registrations []Registration
}

// Start starts all parts.
func Start(config Config) (_ *Server, err error) {
	s := &Server{
		logf: config.Logf, guest: config.Guest, ended: make(chan struct{}), changed: make(chan struct{}),
		mode: ModeRefuse, connections: map[*controlbase.Conn]bool{},
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.state, err = readState(config.State); err != nil {
		return nil, err
	}
	for _, text := range config.AuthKeys {
		added, err := parseAuthKey(text)
		if err != nil {
			return nil, err
		}
		s.state.addKey(added)
	}
	host := config.Listen.Addr()
	if err := s.startParts(host); err != nil {
		return nil, err
	}
	wanted := config.Listen
	if wanted.Port() == 0 {
		wanted = netip.AddrPortFrom(host, uint16(s.state.Ports.Control))
	}
	if s.listen, err = s.startControl(wanted); err != nil {
		return nil, err
	}
	s.state.Ports.Control = int(s.listen.Port())
	at := func(address netip.Addr, port int) string {
		return net.JoinHostPort(address.String(), strconv.Itoa(port))
	}
	s.controlURL = "http://" + at(s.guest, s.state.Ports.Control)
	s.Addresses = Addresses{
		Control: "http://" + at(host, s.state.Ports.Control),
		Guest:   s.controlURL,
		Admin:   "http://" + at(host, s.state.Ports.Admin),
		DERP:    at(s.guest, s.state.Ports.Relay),
		STUN:    at(s.guest, s.state.Ports.STUN),
		Domain:  Domain,
	}
	return s, s.state.write()
}

// startParts starts relay, STUN, the HTTP interface and testcontrol, in short everything but what machines reach first.
func (s *Server) startParts(host netip.Addr) error {
	relay, err := net.Listen("tcp", netip.AddrPortFrom(host, uint16(s.state.Ports.Relay)).String())
	if err != nil {
		return fmt.Errorf("listening for the relay: %w", err)
	}
	s.closers = append(s.closers, relay.Close)
	s.state.Ports.Relay = relay.Addr().(*net.TCPAddr).Port
	if err := s.serveRelay(relay); err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, uint16(s.state.Ports.STUN))))
	if err != nil {
		return fmt.Errorf("listening for STUN: %w", err)
	}
	s.closers = append(s.closers, socket.Close)
	s.state.Ports.STUN = socket.LocalAddr().(*net.UDPAddr).Port
	go s.serveSTUN(socket)

	admin, err := net.Listen("tcp", netip.AddrPortFrom(host, uint16(s.state.Ports.Admin)).String())
	if err != nil {
		return fmt.Errorf("listening for the HTTP interface: %w", err)
	}
	s.closers = append(s.closers, admin.Close)
	s.state.Ports.Admin = admin.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: s.adminHandler(), ReadHeaderTimeout: headPatience}
	go func() { _ = server.Serve(admin) }() // it ends when the listener is closed

	relays, err := s.relayMap()
	if err != nil {
		return err
	}
	s.inner = &testcontrol.Server{
		Logf:             func(string, ...any) {},
		DERPMap:          relays,
		DNSConfig:        &tailcfg.DNSConfig{Proxied: true, Domains: []string{Domain}},
		MagicDNSDomain:   Domain,
		AllNodesSameUser: true,
		AllOnline:        true,
		ExplicitBaseURL:  "http://unused.invalid",
		// Nothing that tests do not need: no TLS certificates, no funnel, no file sharing.
		DefaultNodeCapabilities: &tailcfg.NodeCapMap{},
	}
	return s.replay()
}

// startControl begins to listen for machines.
func (s *Server) startControl(address netip.AddrPort) (netip.AddrPort, error) {
	listener, err := net.Listen("tcp", address.String())
	if err != nil {
		return address, fmt.Errorf("listening for machines: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(s.serveControl), ReadHeaderTimeout: headPatience}
	s.mu.Lock()
	s.control, s.mode = server, ModeUp
	s.mu.Unlock()
	go func() { _ = server.Serve(listener) }() // it ends when the server is closed
	return listener.Addr().(*net.TCPAddr).AddrPort(), nil
}

// SetMode changes how the control server behaves, and cuts all connections to it.
func (s *Server) SetMode(mode Mode) error {
	s.mu.Lock()
	was := s.mode
	s.mode = mode
	close(s.changed)
	s.changed = make(chan struct{})
	cut := s.connections
	s.connections = map[*controlbase.Conn]bool{}
	control := s.control
	s.mu.Unlock()
	for connection := range cut {
		_ = connection.Close() // it may be closed already
	}
	switch {
	case mode == ModeRefuse && was != ModeRefuse:
		return control.Close()
	case mode != ModeRefuse && was == ModeRefuse:
		if _, err := s.startControl(s.listen); err != nil {
			return err
		}
		s.mu.Lock()
		s.mode = mode
		s.mu.Unlock()
	}
	return nil
}

func (s *Server) currentMode() Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode
}

// Close ends all parts.
func (s *Server) Close() error {
	close(s.ended)
	var all []error
	for _, closer := range s.closers {
		all = append(all, closer())
	}
	if s.relay != nil {
		all = append(all, s.relay.Close())
	}
	if s.control != nil {
		all = append(all, s.control.Close())
	}
	return errors.Join(all...)
}

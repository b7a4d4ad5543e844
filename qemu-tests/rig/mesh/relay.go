package mesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
)

// newCertificate makes the relay's certificate: a self-signed one, which the map of relays names by its digest.
func newCertificate() (certificate, privateKey []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the relay's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: relayName},
		DNSNames:     []string{relayName},
		// The clocks of test machines may be off by years.
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:  time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, fmt.Errorf("making the relay's certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("writing the relay's key: %w", err)
	}
	block := func(kind string, content []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content})
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8), nil
}

// serveRelay runs the DERP server until the listener is closed.
func (s *Server) serveRelay(listener net.Listener) error {
	pair, err := tls.X509KeyPair(s.state.Certificate, s.state.PrivateKey)
	if err != nil {
		return fmt.Errorf("reading the relay's certificate: %w", err)
	}
	s.relay = derpserver.New(s.state.Relay, func(string, ...any) {})
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }}
	s.relay.ModifyTLSConfigToAddMetaCert(config)
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(s.relay))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	server := &http.Server{
		Handler:   mux,
		TLSConfig: config,
		ErrorLog:  log.New(writer(s.logf), "", 0),
		// DERP takes the connection over, which HTTP/2 does not have.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	go func() { _ = server.ServeTLS(listener, "", "") }() // it ends when the listener is closed
	return nil
}

// serveSTUN tells machines which address they are seen with, until the socket is closed. One that comes from loopback is
// told the address at which it can be reached by the others: guests of QEMU's user network reach the host's loopback
// there, and so each other directly.
func (s *Server) serveSTUN(socket *net.UDPConn) {
	buffer := make([]byte, 1500)
	for {
		length, from, err := socket.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		transaction, err := stun.ParseBindingRequest(buffer[:length])
		if err != nil {
			continue
		}
		seen := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if seen.Addr().IsLoopback() {
			seen = netip.AddrPortFrom(s.guest, seen.Port())
		}
		_, _ = socket.WriteToUDPAddrPort(stun.Response(transaction, seen), from) // it asks again
	}
}

// relayMap is the map of relays that machines get: this one, trusted by the digest of its certificate.
func (s *Server) relayMap() (*tailcfg.DERPMap, error) {
	block, _ := pem.Decode(s.state.Certificate)
	if block == nil {
		return nil, fmt.Errorf("the relay's certificate is no PEM")
	}
	node := &tailcfg.DERPNode{
		Name:     "1a",
		RegionID: 1,
		HostName: relayName,
		CertName: fmt.Sprintf("sha256-raw:%x", sha256.Sum256(block.Bytes)),
		IPv4:     s.guest.String(),
		IPv6:     "none",
		DERPPort: s.state.Ports.Relay,
		STUNPort: s.state.Ports.STUN,
	}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "rig", RegionName: "Rig", Nodes: []*tailcfg.DERPNode{node}}
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: region}, OmitDefaultRegions: true}, nil
}

// writer gives lines to a log.
type writer func(format string, arguments ...any)

func (w writer) Write(line []byte) (int, error) {
	w("%s", line)
	return len(line), nil
}

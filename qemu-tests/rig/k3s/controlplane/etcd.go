package controlplane

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"nodezero.dev/rig/k3s/config"
)

const etcdStart = 5 * time.Minute

// startEtcd runs a cluster of one member, whose clients come over a socket of this machine alone, and gives the URL of
// that socket.
func startEtcd(ctx context.Context, options *config.Config) (*embed.Etcd, string, error) {
	directory := options.Path("server", "db", "etcd")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, "", err
	}
	socket := options.Path("server", "etcd.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, "", err
	}
	clients := url.URL{Scheme: "unix", Path: socket}
	peers := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}

	etcd := embed.NewConfig()
	etcd.Name = "standin"
	etcd.Dir = directory
	etcd.ListenClientUrls = []url.URL{clients}
	// etcd advertises no socket. No other member reads what it advertises, and nobody listens there.
	etcd.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2379"}}
	etcd.ListenPeerUrls, etcd.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	etcd.InitialCluster = etcd.Name + "=" + peers.String()
	etcd.LogLevel = "error"
	// An emulated disk takes its time; the only member needs no quick election.
	etcd.TickMs, etcd.ElectionMs = 100, 1000
	server, err := embed.StartEtcd(etcd)
	if err != nil {
		return nil, "", fmt.Errorf("starting etcd: %w", err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, clients.String(), nil
	case err := <-server.Err():
		return nil, "", fmt.Errorf("starting etcd: %w", err)
	case <-time.After(etcdStart):
		server.Close()
		return nil, "", fmt.Errorf("starting etcd: not ready after %s", etcdStart)
	case <-ctx.Done():
		server.Close()
		return nil, "", ctx.Err()
	}
}

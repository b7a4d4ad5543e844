// Meshserver is a mesh for tests on this host's loopback; package mesh says what it does and leaves out.
//
// When it listens it prints one line of JSON with its addresses to standard output. It ends when its standard input does,
// so that it does not outlive who started it, or by SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"nodezero.dev/rig/mesh"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("meshserver: ")
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	var keys []string
	listen := flag.String("listen", "127.0.0.1:0", "`address` of the control server; the other parts take free ports there")
	guest := flag.String("guest", "10.0.2.2", "`address` at which machines reach that one")
	state := flag.String("state", "", "`file` that keeps keys, ports and nodes over a restart")
	detached := flag.Bool("detached", false, "go on when standard input ends")
	flag.Func("auth-key", "`key` that lets machines join: KEY[,once][,expired][,tags=TAG+TAG]; may be repeated", func(key string) error {
		keys = append(keys, key)
		return nil
	})
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q is not known", flag.Arg(0))
	}
	config := mesh.Config{State: *state, AuthKeys: keys, Logf: log.Printf}
	var err error
	if config.Listen, err = netip.ParseAddrPort(*listen); err != nil {
		return fmt.Errorf("parsing --listen: %w", err)
	}
	if config.Guest, err = netip.ParseAddr(*guest); err != nil {
		return fmt.Errorf("parsing --guest: %w", err)
	}
	server, err := mesh.Start(config)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := json.NewEncoder(os.Stdout).Encode(server.Addresses); err != nil {
		return fmt.Errorf("printing the addresses: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if !*detached {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	<-ctx.Done()
	return nil
}

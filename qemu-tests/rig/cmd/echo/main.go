// Command echo is the program of the test image. Without arguments it answers every HTTP request on port 8080 with its
// host name, in a pod the pod's. "echo fetch URL" prints what URL answers, tried for at most a minute.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	patience   = time.Minute
	oneTry     = 5 * time.Second
	bodyLimit  = 1 << 20
	listenPort = ":8080"
)

func main() {
	err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 0:
		return serve()
	case len(args) == 2 && args[0] == "fetch":
		return fetch(args[1])
	default:
		return fmt.Errorf("usage: echo [fetch URL]")
	}
}

func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr:              listenPort,
		ReadHeaderTimeout: oneTry,
		Handler: http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(response, name)
		}),
	}
	return server.ListenAndServe()
}

func fetch(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := fetchOnce(ctx, url)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fetching %s for %s: %w", url, patience, err)
		case <-time.After(time.Second):
		}
	}
}

func fetchOnce(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, oneTry)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyLimit))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	_, err = os.Stdout.Write(body)
	return err
}

// Command airgap builds the images of the tests and writes them as one airgap archive. Run it in the module:
//
//	go run ./cmd/airgap -o airgap.tar.zst
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"nodezero.dev/rig/airgap"
)

// programs are the images' names by the command that is built for them. The first is the sandbox image that K3s names by
// default, so that a node finds it where it looks.
var programs = []struct{ command, image string }{
	{"pause", "docker.io/rancher/mirrored-pause:3.6"},
	{"echo", "nodezero.dev/rig/echo:1"},
}

func main() {
	output := flag.String("o", "airgap.tar.zst", "the archive to write")
	flag.Parse()
	if err := run(*output); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(output string) error {
	directory, err := os.MkdirTemp("", "airgap")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	var images []airgap.Image
	for _, program := range programs {
		path := filepath.Join(directory, program.command)
		if err := build(program.command, path); err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		images = append(images, airgap.Image{Name: program.image, Path: program.command, Program: content})
	}
	file, err := os.Create(output)
	if err != nil {
		return err
	}
	if err := airgap.Write(file, images); err != nil {
		return err
	}
	return file.Close()
}

// build leaves out of a program what differs from one machine to the next.
func build(command, output string) error {
	arguments := []string{
		"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", output,
		"nodezero.dev/rig/cmd/" + command,
	}
	compiler := exec.Command("go", arguments...)
	compiler.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1")
	compiler.Stderr = os.Stderr
	if err := compiler.Run(); err != nil {
		return fmt.Errorf("building %s: %w", command, err)
	}
	return nil
}

package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	_ "unsafe" // for the link names below

	_ "k8s.io/component-base/version"
)

// kubernetesVersion is that of go.mod.
const kubernetesVersion = "v1.35.4"

// Upstream's build sets these with linker flags. Ours is a plain "go build", so they are set here.
var (
	//go:linkname dynamicGitVersion k8s.io/component-base/version.dynamicGitVersion
	dynamicGitVersion atomic.Value
	//go:linkname gitMajor k8s.io/component-base/version.gitMajor
	gitMajor string
	//go:linkname gitMinor k8s.io/component-base/version.gitMinor
	gitMinor string
)

func setVersion() {
	gitMajor, gitMinor = "1", "35"
	dynamicGitVersion.Store(version)
}

func printPassword(args []string) error {
	if len(args) != 1 || args[0] != "generate" {
		return errors.New("no such command of this stand-in: only \"token generate\" is")
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(random))
	return nil
}

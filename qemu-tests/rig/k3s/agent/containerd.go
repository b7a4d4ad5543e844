package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/klauspost/compress/zstd"

	"nodezero.dev/rig/k3s/log"
)

// Socket is where containerd listens, K3s' place for it.
const Socket = "/run/k3s/containerd/containerd.sock"

const (
	containerdStart = 5 * time.Minute
	importTimeout   = 15 * time.Minute
)

// pluginDirectories are where CNI plugins may lie: Debian's place, then that of upstream's archive.
var pluginDirectories = []string{"/usr/lib/cni", "/opt/cni/bin"}

var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "{{.Root}}"
state = "/run/k3s/containerd"

[grpc]
  address = "{{.Socket}}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Root}}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  restrict_oom_score_adj = {{.Restricted}}

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = {{.SystemdCgroup}}

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{.Plugins}}"
  conf_dir = "{{.Networks}}"
`))

// startContainerd runs containerd until the context ends, and returns when it answers. Containers outlive it, as they
// outlive K3s' own.
func (a *Agent) startContainerd(ctx context.Context) error {
	plugins, err := findPlugins()
	if err != nil {
		return err
	}
	var config bytes.Buffer
	err = containerdConfig.Execute(&config, map[string]any{
		"Root": a.path("containerd"), "Socket": Socket, "Pause": a.options.Text("pause-image"),
		"SystemdCgroup": a.systemd, "Plugins": plugins, "Networks": a.networkDirectory(),
		"Restricted": !mayLowerScores(),
	})
	if err != nil {
		return err
	}
	path := a.path("etc", "containerd", "config.toml")
	for _, directory := range []string{filepath.Dir(path), a.path("containerd"), a.networkDirectory(), "/run/k3s"} {
		if err := os.MkdirAll(directory, 0o711); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, config.Bytes(), 0o600); err != nil {
		return err
	}
	output, err := os.OpenFile(a.path("containerd", "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	go a.runContainerd(ctx, path, output)
	return awaitSocket(ctx)
}

// runContainerd keeps to one thread: the kernel sends the parent's death signal when the thread that started a child
// ends.
func (a *Agent) runContainerd(ctx context.Context, config string, output *os.File) {
	runtime.LockOSThread()
	defer output.Close()
	defer close(a.containerdEnded)
	command := exec.CommandContext(ctx, "containerd", "--config", config)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = stopPatience
	// Units that systemd starts have a path; whoever calls from elsewhere may not.
	command.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
	log.Info("Running containerd with %s", config)
	err := command.Run()
	if ctx.Err() == nil {
		a.Failed <- fmt.Errorf("containerd exited: %v; see %s", err, output.Name())
	}
}

func awaitSocket(ctx context.Context) error {
	for deadline := time.Now().Add(containerdStart); time.Now().Before(deadline); {
		connection, err := net.Dial("unix", Socket)
		if err == nil {
			connection.Close()
			log.Info("containerd is now running")
			return nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("starting containerd: %s does not answer after %s", Socket, containerdStart)
}

// importImages brings the archives of agent/images to containerd, each a file or a link to one. A broken archive is an
// error of its own and does not keep the node from starting, as in K3s.
func (a *Agent) importImages(ctx context.Context) {
	archives, _ := filepath.Glob(a.path("images", "*"))
	sort.Strings(archives)
	for _, archive := range archives {
		if !isArchive(archive) {
			continue
		}
		started := time.Now()
		if err := importArchive(ctx, archive); err != nil {
			log.Error("Unable to import %s: %v", archive, err)
			continue
		}
		log.Info("Imported images from %s in %s", archive, time.Since(started).Round(time.Millisecond))
	}
}

func isArchive(path string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"} {
		if strings.HasSuffix(path, suffix) {
			return true
		}
	}
	return false
}

func importArchive(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	content, err := decompress(path, file)
	if err != nil {
		return err
	}
	defer content.Close()
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, "ctr", "--address", Socket, "--namespace", "k8s.io", "images", "import", "-")
	command.Stdin = content
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}

func decompress(path string, file io.Reader) (io.ReadCloser, error) {
	switch {
	case strings.HasSuffix(path, "gz"):
		return gzip.NewReader(file)
	case strings.HasSuffix(path, "zst"):
		decoder, err := zstd.NewReader(file)
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	default:
		return io.NopCloser(file), nil
	}
}

// mayLowerScores says whether pods may be made less likely to be killed than we are. In some containers and sandboxes
// not even root may; runc would fail there.
func mayLowerScores() bool {
	const resource = 24 // CAP_SYS_RESOURCE in linux/capability.h
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, effective, _ := strings.Cut(string(status), "CapEff:")
	effective, _, _ = strings.Cut(effective, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(effective), 16, 64)
	return err != nil || set&(1<<resource) != 0
}

func findPlugins() (string, error) {
	for _, directory := range pluginDirectories {
		if _, err := os.Stat(filepath.Join(directory, "bridge")); err == nil {
			return directory, nil
		}
	}
	return "", errors.New("finding CNI plugins: none in " + strings.Join(pluginDirectories, ", "))
}

package main

import (
	"os"

	_ "github.com/klauspost/compress/zstd"
	_ "github.com/vishvananda/netlink"
	_ "go.etcd.io/etcd/server/v3/embed"
	_ "golang.org/x/crypto/scrypt"
	_ "golang.org/x/sys/unix"
	_ "k8s.io/api/core/v1"
	_ "k8s.io/apimachinery/pkg/util/wait"
	_ "k8s.io/client-go/dynamic"
	_ "k8s.io/client-go/restmapper"
	_ "k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	cm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	_ "sigs.k8s.io/yaml"
	"context"
)

func main() {
	switch os.Args[1] {
	case "a":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "c":
		os.Exit(cli.Run(cm.NewControllerManagerCommand()))
	case "p":
		os.Exit(cli.Run(proxy.NewProxyCommand()))
	case "s":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "l":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "k":
		os.Exit(cli.Run(kubectl.NewDefaultKubectlCommand()))
	}
}

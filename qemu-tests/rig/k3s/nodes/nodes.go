// Package nodes is what a K3s server does with Nodes: it names its own role on its own Node, and forgets the password of
// a Node that is deleted, so that another machine may come under that name.
//
// Specification: docs.k3s.io/architecture ("How Agent Node Registration Works").
package nodes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/nodepassword"
)

const roles = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`

// AwaitServer waits until the server's own Node is there, and labels it.
func AwaitServer(ctx context.Context, config *rest.Config, name string) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for {
		_, err := client.CoreV1().Nodes().Patch(
			ctx, name, types.MergePatchType, []byte(roles), metav1.PatchOptions{})
		if err == nil {
			log.Info("Labels and annotations have been set successfully on node: %s", name)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// ForgetDeleted deletes the password of each Node that is deleted, until the context ends.
func ForgetDeleted(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	informer := informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes().Informer()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(object any) {
		node, ok := object.(*corev1.Node)
		if !ok {
			return
		}
		if err := nodepassword.Delete(ctx, client, node.Name); err != nil {
			log.Warn("forgetting the password of node '%s': %v", node.Name, err)
		}
	}})
	if err != nil {
		return err
	}
	informer.RunWithContext(ctx)
	return nil
}

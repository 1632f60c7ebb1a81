// Command kube is every Kubernetes component of the local test cluster in one binary: the name it is called by
// (a symbolic link) chooses the component. One binary shares the code that all components have in common: 140 MB
// instead of 600 MB, and one build instead of seven.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// Each entry gives a fresh command: building one registers flags and metrics, so only the chosen one may be built.
var components = map[string]func() int{
	"etcd": func() int {
		etcdmain.Main(os.Args)
		return 0
	},
	"kube-apiserver":          component(func() *cobra.Command { return kubeapiserver.NewAPIServerCommand() }),
	"kube-controller-manager": component(func() *cobra.Command { return controllermanager.NewControllerManagerCommand() }),
	"kube-scheduler":          component(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kube-proxy":              component(func() *cobra.Command { return kubeproxy.NewProxyCommand() }),
	"kubelet": component(func() *cobra.Command {
		return kubelet.NewKubeletCommand(context.Background())
	}),
	"kubectl": func() int {
		if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
			return 1
		}
		return 0
	},
}

func component(build func() *cobra.Command) func() int {
	return func() int { return cli.Run(build()) }
}

func main() {
	run, known := components[filepath.Base(os.Args[0])]
	if !known {
		names := make([]string, 0, len(components))
		for name := range components {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "call this binary by one of these names: %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	os.Exit(run())
}

package packages

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// instruction is one of a Dockerfile, such as {"COPY", ["--from=build", ...]}.
type instruction struct {
	name string
	args []string
}

func dockerfile(t *testing.T) (all []instruction) {
	t.Helper()
	text := strings.ReplaceAll(string(must(os.ReadFile("../image/Dockerfile"))(t)), "\\\n", " ")
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			all = append(all, instruction{f[0], f[1:]})
		}
	}
	return all
}

// last finds the last instruction of that name.
func last(t *testing.T, all []instruction, name string) []string {
	t.Helper()
	for _, i := range slices.Backward(all) {
		if i.name == name {
			return i.args
		}
	}
	t.Fatalf("the Dockerfile has no %s", name)
	return nil
}

func TestImageIsEmptyButForTheProgram(t *testing.T) {
	all := dockerfile(t)
	if got := last(t, all, "FROM"); got[0] != "scratch" {
		t.Errorf("the image begins with %v", got)
	}
	uid, _, _ := strings.Cut(last(t, all, "USER")[0], ":")
	if n, err := strconv.Atoi(uid); err != nil || n == 0 {
		t.Errorf("the user %q is not a number other than root's, which Kubernetes wants to see", uid)
	}
	for _, name := range []string{"ENTRYPOINT", "CMD"} {
		var list []string
		if err := json.Unmarshal([]byte(strings.Join(last(t, all, name), " ")), &list); err != nil {
			t.Errorf("%s needs a shell, and there is none: %v", name, err)
		}
	}
	// What is copied from the repository is there, and in the build's view of it.
	ignored := strings.Fields(string(must(os.ReadFile("../../.dockerignore"))(t)))
	for _, i := range all {
		if i.name != "COPY" || strings.HasPrefix(i.args[0], "--from=") {
			continue
		}
		for _, source := range i.args[:len(i.args)-1] {
			if _, err := os.Stat(filepath.Join("../..", source)); err != nil || slices.Contains(ignored, source) {
				t.Errorf("COPY %s: %v", source, err)
			}
		}
	}
	goMod := string(must(os.ReadFile("../../go.mod"))(t))
	image := all[0].args[1] // after --platform
	if want, _, _ := strings.Cut(strings.TrimPrefix(image, "golang:"), "-"); !strings.Contains(goMod, "\ngo "+want+".") {
		t.Errorf("built with %s, go.mod wants another", image)
	}
}

// What the Dockerfile puts together runs with a root file system that cannot be
// written, without a shell, as its user. No container engine is needed for that.
func TestImageRunsReadOnly(t *testing.T) {
	t.Parallel()
	if os.Getenv(packagesIn) == "" {
		t.Skip("make shipped runs this test: it needs root")
	}
	all := dockerfile(t)
	stage, image := t.TempDir(), t.TempDir()
	target := map[string]string{"amd64": "amd64", "arm64": "arm64", "arm": "armv7"}[runtime.GOARCH]
	program := must(filepath.Abs("../../dist/gatewayd-linux-" + target))(t)
	for _, i := range all {
		if i.name == "RUN" && i.args[0] == "deploy/image/layout" {
			if out, err := exec.Command("../image/layout", program, filepath.Join(stage, i.args[2])).CombinedOutput(); err != nil {
				t.Fatalf("layout: %v\n%s", err, out)
			}
		}
	}
	for _, i := range all {
		if i.name != "COPY" || i.args[0] != "--from=build" {
			continue
		}
		from, to := i.args[len(i.args)-2], filepath.Join(image, i.args[len(i.args)-1])
		check(t, os.MkdirAll(filepath.Dir(to), 0o755))
		check(t, exec.Command("cp", "-a", filepath.Join(stage, from), to).Run())
		if owner, ok := strings.CutPrefix(i.args[1], "--chown="); ok {
			check(t, exec.Command("chown", "-R", owner, to).Run())
		}
	}
	for _, dir := range []string{filepath.Dir(image), image} {
		check(t, os.Chmod(dir, 0o755))
	}
	count := 0
	check(t, filepath.WalkDir(image, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			count++
		}
		return err
	}))
	if count != 2 {
		t.Errorf("%d files are in the image, not the program and the root certificates", count)
	}
	check(t, os.WriteFile(filepath.Join(image, "etc/gatewayd/config.yaml"), must(os.ReadFile("config.yaml"))(t), 0o644))
	const script = `set -e
mount --bind "$1" "$1"
mount -t tmpfs -o mode=700,uid=65532,gid=65532 none "$1/var/lib/gatewayd"
mount -o remount,bind,ro "$1"
shift
exec chroot --userspec="$@"`
	run := func(args ...string) (string, error) {
		cmd := exec.Command("unshare", append([]string{"--mount", "--net", "--", "sh", "-c", script, "sh", image, last(t, all, "USER")[0], image}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	entry := strings.Trim(strings.Join(last(t, all, "ENTRYPOINT"), " "), `[]"`)
	out, err := run(entry, "version")
	if strings.Contains(out, "unshare failed") || strings.Contains(out, "mount:") {
		t.Skipf("nothing can be mounted here: %s", out)
	}
	check(t, err)
	if !strings.Contains(out, "commit: ") {
		t.Errorf("no version: %s", out)
	}
	// It runs until it is told to stop, which timeout(1) of the outside does.
	cmd := exec.Command("timeout", "--signal=TERM", "3", "unshare", "--mount", "--net", "--", "sh", "-c",
		"ip link set lo up 2>/dev/null || true\n"+script, "sh", image, last(t, all, "USER")[0], image, entry, "run", "-c", "/etc/gatewayd/config.yaml")
	log, _ := cmd.CombinedOutput()
	for _, want := range []string{`"msg":"started"`, `"msg":"stopped"`} {
		if !strings.Contains(string(log), want) {
			t.Errorf("no %s in\n%s", want, log)
		}
	}
}

package certstore

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"gatewayd/internal/certstore/certtest"
)

func TestUnreadableKeyNamesItsOwner(t *testing.T) {
	r := newRig(t)
	must(t, os.Chmod(r.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(r.dir), 0o755))
	p := r.issue(certtest.Leaf{})
	must(t, p.Write(r.src.Cert, r.src.Key))
	must(t, os.Chmod(r.src.Key, 0))
	must(t, os.Chmod(r.src.Cert, 0o644))
	if os.Geteuid() == 0 {
		// Root reads everything: look as somebody else, on this thread alone, which ends with the goroutine.
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			must(t, syscall.Setfsuid(65534))
			unreadable(t, r)
		}()
		<-done
		return
	}
	unreadable(t, r)
}

func unreadable(t *testing.T, r *rig) {
	_, err := readFile(r.src.Key)
	var inv *Invalid
	if !errors.As(err, &inv) {
		t.Errorf("%v, want Invalid", err)
		return
	}
	for _, want := range []string{"may not be read (mode 0000, owner uid ", "the daemon runs as uid "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestMountedSingleFileIsNamed(t *testing.T) {
	table := []byte("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n" +
		"41 35 0:52 / /mnt3 rw - nfs4 server:/certs rw\n42 35 0:53 / /mnt4 rw - fuse.sshfs server:/certs rw\n" +
		`40 35 98:0 /x /etc/gate\040way/tls.crt ro - ext4 /dev/root rw` + "\nshort line\n")
	points := mountPoints(table)
	want := map[string]mount{"/mnt2": {"98:0", false}, "/etc/gate way/tls.crt": {"98:0", false}, "/mnt3": {"0:52", true}, "/mnt4": {"0:53", true}}
	if !maps.Equal(points, want) {
		t.Errorf("points %v", points)
	}
	file := filepath.Join(t.TempDir(), "tls.crt")
	must(t, os.WriteFile(file, nil, 0o600))
	real, err := filepath.EvalSymlinks(file)
	must(t, err)
	if got := pinned(file, map[string]mount{real: {}}); !strings.Contains(got, "mount its folder instead") {
		t.Errorf("mounted: %q", got)
	}
	if got := pinned(file, points); got != "" {
		t.Errorf("not mounted: %q", got)
	}
	if got := pinnedText(file, 0); !strings.Contains(got, "until a restart") {
		t.Errorf("replaced: %q", got)
	}
	// The mounts of this machine can be read at all.
	if readMountPoints()["/"].id == "" {
		t.Error("no root among the mount points")
	}
}

func TestSystemdCredentialIsNamed(t *testing.T) {
	r := newRig(t)
	t.Setenv("CREDENTIALS_DIRECTORY", r.dir)
	r.put(certtest.Leaf{})
	s := r.open()
	s.placed("events", nil)
	s.placed("events", nil)
	if st := s.Status(); len(st.Problems) != 2 || !strings.Contains(st.Problems[0], "only after a restart") {
		t.Errorf("problems %v", st.Problems)
	}
	if r.said("certificate file is in a place that hides renewals") != 2 {
		t.Errorf("not said once each: %v", r.logs.All())
	}
	if _, warnings := InspectFiles(r.src); len(warnings) != 2 {
		t.Errorf("check says %v", warnings)
	}
}

func TestNetworkFileSystemsArePolled(t *testing.T) {
	for name, magic := range map[string]uint32{"NFS": 0x6969, "CIFS": 0xff534d42, "FUSE": 0x65735546, "9p": 0x01021997} {
		if !quietType(magic) {
			t.Errorf("%s is said to raise events", name)
		}
	}
	for name, magic := range map[string]uint32{"ext4": 0xef53, "tmpfs": 0x01021994, "overlay": 0x794c7630} {
		if quietType(magic) {
			t.Errorf("%s is said to raise none", name)
		}
	}
	if quietFilesystem(filepath.Join(t.TempDir(), "missing")) {
		t.Error("a missing folder is not on a network")
	}
}

func TestTrailOfALoopEnds(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("b", filepath.Join(dir, "a")))
	must(t, os.Symlink("a", filepath.Join(dir, "b")))
	if n := len(trail(filepath.Join(dir, "a", "tls.crt"))); n == 0 || n > 60 {
		t.Errorf("%d places", n)
	}
	_, err := Load(Source{Cert: filepath.Join(dir, "a")})
	var inv *Invalid
	if !errors.As(err, &inv) {
		t.Errorf("%v, want Invalid", err)
	}
}

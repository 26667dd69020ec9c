package main

import (
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// serviceUser is the user that runs the gateway: the owner of the state folder, or of
// the control socket in it. It matters to a doctor that root runs, who may read everything.
type serviceUser struct {
	name, group string
	uid, gid    int
	groups      []int
}

// findServiceUser returns the user with whose rights files are to be judged, nil for
// the present one, and the name of the gateway's user when neither can be done.
//
// A running gateway is the owner of its control socket.
func findServiceUser(stateDir string, running bool) (u *serviceUser, stranger string) {
	path := stateDir
	if running {
		path = filepath.Join(stateDir, controlSocket)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil, ""
	}
	u = newServiceUser(int(st.Uid), int(st.Gid))
	if os.Geteuid() != 0 {
		return nil, u.name
	}
	return u, ""
}

func newServiceUser(uid, gid int) *serviceUser {
	u := &serviceUser{name: strconv.Itoa(uid), group: strconv.Itoa(gid), uid: uid, gid: gid}
	known, err := user.LookupId(u.name)
	if err != nil {
		return u
	}
	u.name = known.Username
	if gid, err := strconv.Atoi(known.Gid); err == nil {
		u.gid, u.group = gid, known.Gid
	}
	if g, err := user.LookupGroupId(u.group); err == nil {
		u.group = g.Name
	}
	ids, err := known.GroupIds()
	if err != nil {
		return u
	}
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil {
			u.groups = append(u.groups, n)
		}
	}
	return u
}

// do asks the kernel something with the rights of the user. They are those of one
// thread, which ends with it.
func (u *serviceUser) do(ask func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		done <- u.become(ask)
	}()
	return <-done
}

func (u *serviceUser) become(ask func() error) error {
	// The calls of this package change the present thread only.
	if err := unix.Setgroups(append(slices.Clone(u.groups), u.gid)); err != nil {
		return err
	}
	if _, err := unix.SetfsgidRetGid(u.gid); err != nil {
		return err
	}
	// The kernel takes the rights over files from a thread whose fsuid is not 0
	// any more (capabilities(7)).
	if _, err := unix.SetfsuidRetUid(u.uid); err != nil {
		return err
	}
	return ask()
}

// cannotRead names the first of the files that the user may not open.
func (u *serviceUser) cannotRead(paths ...string) (string, error) {
	for _, path := range paths {
		if path == "" {
			continue
		}
		err := u.do(func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		})
		if err != nil {
			return path, err
		}
	}
	return "", nil
}

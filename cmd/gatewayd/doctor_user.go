package main

import (
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// serviceUser is the user that runs the gateway: the owner of the state folder. It
// matters to a doctor that root runs, who may read everything.
type serviceUser struct {
	name, group string
	uid, gid    int
	groups      []int
}

// findServiceUser is nil when files are to be judged as the present user.
func findServiceUser(stateDir string) *serviceUser {
	info, err := os.Stat(stateDir)
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	u := &serviceUser{name: strconv.Itoa(int(st.Uid)), group: strconv.Itoa(int(st.Gid)), uid: int(st.Uid), gid: int(st.Gid)}
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

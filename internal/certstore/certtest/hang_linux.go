package certtest

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// Hang mounts a file system that never answers over dir, as a share of a server that is gone. It needs root and FUSE.
// release takes it away, so that what hung fails and dir is as before; it may be called again.
func Hang(dir string) (release func(), err error) {
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fuse.Fd(), os.Getuid(), os.Getgid())
	if err := syscall.Mount("hang", dir, "fuse", 0, options); err != nil {
		fuse.Close()
		return nil, os.NewSyscallError("mount", err)
	}
	return sync.OnceFunc(func() {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		fuse.Close() // nobody has it open else: what waits is told
	}), nil
}

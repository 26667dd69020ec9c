package certstore

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// quietFilesystem says whether folder lies on a file system whose changes made elsewhere raise no events here. The
// numbers are those of statfs(2).
func quietFilesystem(folder string) bool {
	var st syscall.Statfs_t
	if err := syscall.Statfs(folder, &st); err != nil {
		return false
	}
	return quietType(uint32(st.Type))
}

func quietType(magic uint32) bool {
	switch magic {
	case 0x6969, // NFS
		0xff534d42, 0xfe534d42, 0x517b, // CIFS, SMB2, SMB
		0x65735546,             // FUSE
		0x01021997,             // 9p
		0x00c36400,             // Ceph
		0x5346414f, 0x73757245, // AFS, Coda
		0x786f4256: // VirtualBox shared folder
		return true
	}
	return false
}

// fileID tells one folder from another that took its place.
type fileID struct{ dev, ino uint64 }

func idOf(path string) (fileID, bool) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return fileID{}, false
	}
	return fileID{uint64(st.Dev), st.Ino}, true
}

// mountPoints reads what is mounted where. In the text, white space and backslashes are octal escapes, and the type comes
// behind a dash that ends a list (proc(5)).
func mountPoints(data []byte) map[string]mount {
	points := map[string]mount{}
	for _, l := range bytes.Split(data, []byte("\n")) {
		fields := bytes.Fields(l)
		if len(fields) <= 4 {
			continue
		}
		m := mount{id: string(fields[2])}
		if dash := slices.IndexFunc(fields, func(f []byte) bool { return string(f) == "-" }); dash > 0 && dash+1 < len(fields) {
			m.served = servedType(string(fields[dash+1]))
		}
		points[unescape(string(fields[4]))] = m // of several at one place, the last is on top
	}
	return points
}

// servedType says whether a file system of that type asks another machine or program for everything, and so may hang for
// as long as that is silent.
func servedType(name string) bool {
	kind, _, _ := strings.Cut(name, ".")
	switch kind {
	case "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "fuseblk", "9p", "ceph", "afs", "coda", "ocfs2", "gfs2", "lustre", "glusterfs", "vboxsf", "virtiofs", "autofs":
		return true
	}
	return false
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func readMountPoints() map[string]mount {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return mountPoints(data)
}

// pinned names what keeps the file at path from ever changing: a bind mount of the file itself holds on to one inode,
// and after the original was replaced that inode has no name left.
func pinned(path string, points map[string]mount) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	if _, mounted := points[real]; !mounted {
		return ""
	}
	var st syscall.Stat_t
	if err := syscall.Stat(real, &st); err != nil {
		return ""
	}
	return pinnedText(path, uint64(st.Nlink))
}

func pinnedText(path string, names uint64) string {
	if names == 0 {
		return path + " is a mounted file whose original was replaced: renewals cannot be seen until a restart; mount its folder instead"
	}
	return path + " is a mounted file: a renewal by rename will not be seen; mount its folder instead"
}

package certstore

import (
	"os"
	"path/filepath"
	"strings"
)

// place is a name in a folder; folder is free of symbolic links.
type place struct{ folder, name string }

// trail lists the places where a change can make path mean another file: the file itself, every symbolic link on the way
// to it, the folder that holds it, and, where the way ends early, the name that is missing in the nearest folder that
// exists. Watching their folders sees a link that is re-pointed and a target that is rewritten elsewhere.
func trail(path string) []place {
	places, _ := walk(path, func(string) bool { return true })
	return places
}

// walk is trail with a say in where it goes: may is asked before anything in the root or at a further path is touched. ok
// says that it never refused.
func walk(path string, may func(at string) bool) (out []place, ok bool) {
	abs, err := filepath.Abs(path)
	if err != nil || !may("/") {
		return nil, err != nil
	}
	folder, parts, links := "/", strings.Split(abs, "/"), 0
	for len(parts) > 0 {
		name := parts[0]
		parts = parts[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			folder = filepath.Dir(folder)
			continue
		}
		here := place{folder, name}
		if !may(filepath.Join(folder, name)) {
			return out, false
		}
		info, err := os.Lstat(filepath.Join(folder, name))
		if err != nil {
			return append(out, here), true
		}
		switch mode := info.Mode(); {
		case mode&os.ModeSymlink != 0:
			out = append(out, here)
			target, err := os.Readlink(filepath.Join(folder, name))
			if links++; err != nil || links > 40 { // the kernel's own limit
				return out, true
			}
			if filepath.IsAbs(target) {
				if folder = "/"; !may(folder) {
					return out, false
				}
			}
			parts = append(strings.Split(target, "/"), parts...)
		case mode.IsDir() && len(parts) > 0:
			if last(parts) {
				out = append(out, here)
			}
			folder = filepath.Join(folder, name)
		default:
			return append(out, here), true
		}
	}
	return out, true
}

// last says that one name is left.
func last(parts []string) bool { return len(parts) == 1 }

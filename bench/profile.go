package main

import (
	"os"
	"runtime"
	"runtime/pprof"
)

// profiled writes profiles of what runs until the returned function is called.
func profiled(prefix string) func() {
	runtime.SetBlockProfileRate(10_000)
	runtime.SetMutexProfileFraction(10)
	f, err := os.Create(prefix + ".cpu")
	check(err)
	check(pprof.StartCPUProfile(f))
	return func() {
		pprof.StopCPUProfile()
		check(f.Close())
		for _, name := range []string{"heap", "block", "mutex"} {
			f, err := os.Create(prefix + "." + name)
			check(err)
			check(pprof.Lookup(name).WriteTo(f, 0))
			check(f.Close())
		}
	}
}

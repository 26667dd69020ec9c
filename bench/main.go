// Command bench compares the queue of gatewayd with embedded stores behind the same group commit, in the same run on the same disk.
//
//	go run . [-dir FOLDER] [-rounds 3] [-short] [-payload random|json|repeat] [-engines journal,pebble,bbolt] [-rows waiting,pipelined,...]
//
// Every cell runs in a process of its own on an empty folder; printed are medians of the rounds. Each store has a program of its own (build tags
// only_journal, only_pebble, only_bbolt), so that memory figures do not carry the others' code.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dir := flag.String("dir", filepath.Join(os.TempDir(), "gatewayd-bench"), "scratch folder on the disk to measure")
	rounds := flag.Int("rounds", 3, "rounds, interleaved")
	short := flag.Bool("short", false, "a tenth of the work")
	names := flag.String("engines", "journal,pebble,bbolt", "which stores")
	rowNames := flag.String("rows", "", "which rows; empty = all")
	cell := flag.String("cell", "", "run one cell and print its figures (used by the command itself)")
	stat := flag.String("stat", "", "block device statistics (used by the command itself)")
	payload := flag.String("payload", "random", "what the messages hold: random, json or repeat")
	profile := flag.String("profile", "", "with -cell: prefix of the files for a CPU, heap and block profile")
	flag.Parse()
	if *cell != "" && *profile != "" {
		defer profiled(*profile)()
	}
	if *cell != "" {
		runCell(*cell, *dir, *stat, *payload, *short)
		return
	}
	check(os.MkdirAll(*dir, 0o700))
	dev, err := newDevice(*dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	defer dev.cleanup()
	programs := map[string]string{}
	for _, e := range strings.Split(*names, ",") {
		programs[e] = filepath.Join(*dir, "cell-"+e)
		build := exec.Command("go", "build", "-tags", "only_"+e, "-o", programs[e], ".")
		build.Stderr = os.Stderr
		check(build.Run())
	}
	for _, r := range rows {
		if *rowNames != "" && !slices.Contains(strings.Split(*rowNames, ","), r.name) {
			continue
		}
		results := map[string][]figures{}
		for range *rounds {
			for _, e := range strings.Split(*names, ",") {
				f, err := spawn(programs[e], r.name+"/"+e, dev, *payload, *short)
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s/%s: %v\n", r.name, e, err)
					continue
				}
				results[e] = append(results[e], f)
			}
		}
		fmt.Printf("\n%s: %s\n", r.name, r.about)
		for _, e := range strings.Split(*names, ",") {
			fmt.Printf("  %-8s", e)
			for _, unit := range r.units {
				var v []float64
				for _, f := range results[e] {
					v = append(v, f[unit])
				}
				if slices.Sort(v); len(v) > 0 {
					fmt.Printf("  %s %.4g", unit, v[len(v)/2])
				}
			}
			fmt.Println()
		}
	}
}

type figures map[string]float64

func spawn(program, cell string, dev *device, payload string, short bool) (figures, error) {
	dir := filepath.Join(dev.dir, strings.ReplaceAll(cell, "/", "-"))
	check(os.RemoveAll(dir))
	check(os.MkdirAll(dir, 0o700))
	defer os.RemoveAll(dir)
	var f figures
	for _, phase := range []string{"", "+"} { // the second process opens what the first left
		if phase == "+" && !strings.HasPrefix(cell, "open") {
			break
		}
		exec.Command("sync", "-f", dev.dir).Run()
		c := exec.Command(program, "-cell", cell+phase, "-dir", dir, "-stat", dev.stat, "-payload", payload, fmt.Sprintf("-short=%v", short))
		c.Stderr = os.Stderr
		out, err := c.Output()
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", out, err)
		}
	}
	return f, nil
}

package downstream

import (
	"context"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/itchyny/gojq"

	"gatewayd/internal/queue"
)

// What a program makes out of small values, its own or a sensor's, is bounded.
func TestProgramsCannotMakeMuchOutOfLittle(t *testing.T) {
	for _, text := range []string{
		`"x" * 1000000000`, `1000000000 * "x"`, `.s * .n`, `.s *= .n`, `"x" * 1000 * 1000 * 1000`, `.a[.n] = 1`, `.a[.n] |= 1`, `.a[.n] += 1`,
		`setpath(["a", .n]; 1)`, `def f: "x" * 1000000000; f`, `"a\("x" * 1000000000)"`, `if "x" * 1000000000 then 1 else 2 end`,
		`[.[] | "x" * 1000000000]`, `{a: ("x" * 1000000000)}`, `.a[5:.n] = [1]`, `reduce range(64) as $i (3; . * .)`,
		`("x" * 4000000) as $s | [range(1000) | 1] | join($s)`, `("x" * 4000000) as $s | [range(1000) | $s] | add`, `("x" * 4000000) as $s | [range(1000) | $s] | tojson`,
		`("x" * 4000000) as $s | {a: [range(1000) | $s]} | tostring`,
		`("x" * 4000000) as $s | [range(1000) | $s] | "\(.)"`, `("x" * 4000000) as $s | [range(1000) | $s] | @csv`, `("x" * 4000000) as $s | [range(1000) | $s] | @tsv`,
		`("x" * 4000000) as $s | [range(1000) | $s] | @sh "a\(.)"`, `("x" * 4000000) as $s | [range(1000) | $s] | @html`, `("x" * 4000000) as $s | [range(1000) | $s] | @base64`,
	} {
		code, err := compileProgram(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), programTime)
		_, _, err = first(ctx, code, map[string]any{"s": "xy", "n": json.Number("60000000"), "a": []any{}}, []any{"t", map[string]any{}})
		cancel()
		runtime.ReadMemStats(&after)
		if made := (after.TotalAlloc - before.TotalAlloc) >> 20; err == nil || !strings.Contains(err.Error(), "too large") || made > 64 || time.Since(start) > 2*time.Second {
			t.Errorf("%s: %v, %d MiB, %v", text, err, made, time.Since(start))
		}
	}
}

// The bounds change nothing else.
func TestBoundedProgramsMeanTheSame(t *testing.T) {
	input := map[string]any{"a": []any{1, 2, 3}, "b": map[string]any{"c": 2}, "s": "ab", "n": 3}
	for _, text := range []string{
		`.n * 2 + 1`, `1 + 2 * 3 * .n`, `.s * 2`, `.s * 0`, `(1, 2) * (10, 20)`, `.b * {d: 1}`, `.a[1] = 9`, `.a[] |= . * 2`, `.a[] += 1`, `.b.c *= 5`,
		`.b.c *= (2, 3)`, `.x.y = .n`, `.a[0:2] = []`, `.x //= 4`, `def f($x): $x * .n; f(2) * f(3)`, `setpath(["b", "c"]; 7)`, `.a as [$p, $q] | $p * $q`,
		`"n=\(.n * 2)"`, `[.a[] | select(. * 2 > 3)]`, `try ({} * 2) catch "no"`, `reduce .a[] as $i (1; . * $i)`, `.a | map(. * 2) | add`, `-.n * 2`,
		`.a[-1] *= 2`, `[limit(2; .a[])] | length * 2`, `{v: (.n * 2)}`, `.a |= map(. * 3)`, `path(.a[0])`, `.b |= with_entries(.value *= 2)`, `1e1000 * 2`,
		`.a | join(",")`, `.a | join(",", ";")`, `[] | join(",")`, `["a", null, 1.5, true] | join(.[0])`, `try (.n | join(",")) catch .`, `.b | join("-")`,
		`.a | @csv`, `.a | @tsv`, `.a | @sh`, `@html`, `.a | @uri`, `.s | @base64 | @base64d`, `@csv "x\(.a)"`, `@json`, `@text`, `"\(.b)\(.a)"`,
		`.a | add`, `[] | add`, `[[1], [2]] | add`, `.b | add`, `add(.a[])`, `tojson`, `.s | tojson`, `tostring`, `.s | tostring`, `[.a[] | tostring] | join("")`,
		`del(.a[0])`, `to_entries | length * 1`, `.n % 2 * 3`, `.a[1:] |= map(. * 2)`, `if .n * 2 > 5 then "big" else "small" end`,
	} {
		q, err := gojq.Parse(text)
		if err != nil {
			t.Fatal(text, err)
		}
		plain, err := gojq.Compile(q, gojq.WithVariables(programVariables()))
		if err != nil {
			t.Fatal(text, err)
		}
		bounded, err := compileProgram(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		all := func(c *gojq.Code) string {
			var out []any
			for iter := c.RunWithContext(t.Context(), input, "t", map[string]any{}); ; {
				v, ok := iter.Next()
				if !ok {
					break
				}
				if err, bad := v.(error); bad {
					out = append(out, "error: "+err.Error())
					break
				}
				out = append(out, v)
			}
			b, _ := gojq.Marshal(out)
			return string(b)
		}
		if want, got := all(plain), all(bounded); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// A value that stands for many copies of a sensor's text is measured before it is
// written, and nothing that fits is refused.
func TestLargeResultsAreNotWritten(t *testing.T) {
	text := strings.Repeat("x", 50_000)
	message := map[string]any{"s": text, "a": make([]any, 25_000)}
	for _, r := range []Route{
		{Transform: `. as $m | [.a[] | $m.s]`}, {Transform: `. as $m | .a | join($m.s)`}, {Transform: `. as $m | [.a[] | {d: $m.s}]`},
		{Set: map[string]string{"p": `. as $m | [.a[] | $m.s]`}},
	} {
		p, problems := compilePrograms(r)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		raw, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.apply(t.Context(), queue.Message{Payload: raw}, 256<<10)
		runtime.ReadMemStats(&after)
		if made := (after.TotalAlloc - before.TotalAlloc) >> 20; err != nil || out.fate != fateFailed || made > 64 {
			t.Errorf("%+v: %v, %v, %d MiB", r, out.fate, out.reason, made)
		}
	}
	for _, v := range []any{"", "ä\n", []any{}, []any{nil, true, 1, 2.5, "x"}, map[string]any{}, map[string]any{"k": []any{map[string]any{"l": nil}}, "": "x"}} {
		raw, err := gojq.Marshal(v)
		if err != nil || left(len(raw), v) < 0 {
			t.Errorf("%s is said not to fit %d bytes", raw, len(raw))
		}
	}
}

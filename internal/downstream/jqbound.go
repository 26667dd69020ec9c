package downstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"reflect"

	"github.com/itchyny/gojq"
)

// Bounds of what one step of a program may make. Between steps the time is looked
// at; these steps make any amount out of two small values, some of which may be a
// sensor's.
const (
	programRepeat = 4 << 20 // bytes of a string that is a product, or put together of parts
	programBits   = 1 << 20 // of a number that is a product
	programIndex  = 1 << 20 // of an array that is assigned to
)

// boundPrelude stands before every program: what it defines is bounded. Names with an
// underscore are what the library calls for @csv and the like.
func boundPrelude() string {
	text := "def _setpath_any($p; $v): setpath($p; $v); def setpath($p; $v): _setpath_any(_bound_path($p; $p); $v); " +
		"def _join_any($s): join($s); def join($s): _bound_join($s) | _join_any($s); "
	for _, name := range []string{"add", "tojson", "tostring", "_tohtml", "_touri", "_tocsv", "_totsv", "_tosh", "_tobase64"} {
		text += fmt.Sprintf("def _%[1]s_any: %[1]s; def %[1]s: _bound_size | _%[1]s_any; ", name)
	}
	return text
}

// bound rewrites products and assignments in a program so that they are checked
// first.
func bound(q *gojq.Query) error {
	var failed error
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				return
			}
			walk(v.Elem())
			if q, ok := v.Interface().(*gojq.Query); ok {
				if err := boundOne(q); err != nil && failed == nil {
					failed = err
				}
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					walk(v.Field(i))
				}
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		}
	}
	walk(reflect.ValueOf(q))
	return failed
}

func boundOne(q *gojq.Query) error {
	var text string
	switch q.Op {
	case gojq.OpMul:
		text = fmt.Sprintf("_bound_product((%s); (%s)) | .[0] * .[1]", q.Left, q.Right)
	case gojq.OpUpdateMul:
		text = fmt.Sprintf("reduce path(%s) as $__p (.; _bound_path($__p; .)) | (%s) as $__f | (%s) |= (_bound_product(.; $__f) | .[0] * .[1])", q.Left, q.Right, q.Left)
	case gojq.OpAssign, gojq.OpModify, gojq.OpUpdateAdd, gojq.OpUpdateSub, gojq.OpUpdateDiv, gojq.OpUpdateMod, gojq.OpUpdateAlt:
		text = fmt.Sprintf("reduce path(%s) as $__p (.; _bound_path($__p; .)) | (%s)", q.Left, q)
	default:
		return nil
	}
	checked, err := gojq.Parse("(" + text + ")")
	if err != nil {
		return err
	}
	// What stands before an operator stays before it.
	checked.Meta, checked.Imports, checked.FuncDefs = q.Meta, q.Imports, q.FuncDefs
	*q = *checked
	return nil
}

// boundFunctions are what the rewritten programs call.
func boundFunctions() []gojq.CompilerOption {
	return []gojq.CompilerOption{
		gojq.WithFunction("_bound_product", 2, 2, func(_ any, args []any) any {
			if tooLargeProduct(args[0], args[1]) || tooLargeProduct(args[1], args[0]) {
				return errors.New("a product is too large")
			}
			return []any{args[0], args[1]}
		}),
		gojq.WithFunction("_bound_size", 0, 0, func(v any, _ []any) any {
			if left(programRepeat, v) < 0 {
				return errors.New("what is put together is too large")
			}
			return v
		}),
		gojq.WithFunction("_bound_join", 1, 1, func(v any, args []any) any {
			if leftOfJoin(programRepeat, v, args[0]) < 0 {
				return errors.New("what is joined is too large")
			}
			return v
		}),
		gojq.WithFunction("_bound_path", 2, 2, func(_ any, args []any) any {
			path, _ := args[0].([]any)
			for _, at := range path {
				if m, ok := at.(map[string]any); ok {
					if n, ok := gojq.ToFloat64(m["end"]); ok && n > programIndex {
						return errors.New("an index is too large")
					}
					at = m["start"]
				}
				if n, ok := gojq.ToFloat64(at); ok && n > programIndex {
					return errors.New("an index is too large")
				}
			}
			return args[1]
		}),
	}
}

// left is what is left of so many bytes when a value is written as JSON, at most; below
// 0 it is too large. What stands in it many times, which takes no memory as long as it
// is not written, counts each time.
func left(of int, v any) int {
	switch v := v.(type) {
	case string:
		return of - len(v) - 2
	case []any:
		of -= max(len(v)+1, 2)
		for i := 0; i < len(v) && of >= 0; i++ {
			of = left(of, v[i])
		}
		return of
	case map[string]any:
		of -= max(len(v)+1, 2)
		for k, e := range v {
			if of < 0 {
				break
			}
			of = left(of-len(k)-3, e)
		}
		return of
	}
	return of - 1
}

// leftOfJoin counts the separators too.
func leftOfJoin(of int, v, separator any) int {
	of = left(of, v)
	s, _ := separator.(string)
	n := 0
	switch v := v.(type) {
	case []any:
		n = len(v)
	case map[string]any:
		n = len(v)
	}
	if len(s) > 0 && n > of/len(s) {
		return -1
	}
	return of - n*len(s)
}

func tooLargeProduct(a, b any) bool {
	switch a := a.(type) {
	case string:
		n, ok := gojq.ToFloat64(b)
		return ok && float64(len(a))*n > programRepeat
	case *big.Int, json.Number:
		return numberBits(a)+numberBits(b) > programBits
	}
	return false
}

func numberBits(v any) int {
	switch v := v.(type) {
	case *big.Int:
		return v.BitLen()
	case json.Number:
		return 4 * len(v)
	}
	return 64
}

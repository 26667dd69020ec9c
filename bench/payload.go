package main

import (
	"fmt"
	"math/rand/v2"
)

const (
	payloadBytes = 256
	payloadKinds = 512 // different ones, used in turn: more apart than any store here looks for what repeats
)

// payloads are what the producers send. Random bytes cannot be compressed; json is like the readings of machines: names that repeat, numbers that do not;
// repeat is one run of bytes again and again. The journal stores them as they are, pebble compresses its tables.
func payloads(kind string) [][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	list := make([][]byte, payloadKinds)
	for i := range list {
		p := make([]byte, payloadBytes)
		switch kind {
		case "random":
			for k := range p {
				p[k] = byte(rnd.Uint32())
			}
		case "json":
			p = reading(rnd, i)
		case "repeat":
			for k := range p {
				p[k] = byte(k * 7)
			}
		default:
			panic("payload: random, json or repeat")
		}
		list[i] = p
	}
	return list
}

func reading(rnd *rand.Rand, i int) []byte {
	b := fmt.Appendf(make([]byte, 0, payloadBytes), `{"machine":"press-%d","time":"2026-11-26T21:%02d:%02d.%03dZ","cycle":%d,"state":"running"`, i%40, i/60%60, i%60, rnd.IntN(1000), 400_000+i)
	for _, name := range []string{"oil_temperature", "ram_pressure", "die_position", "motor_current", "vibration_rms", "coolant_flow"} {
		b = fmt.Appendf(b, `,"%s":%.3f`, name, 20+rnd.Float64()*80)
	}
	for len(b) < payloadBytes-1 {
		b = append(b, ' ')
	}
	return append(b[:payloadBytes-1], '}')
}

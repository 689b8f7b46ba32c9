package userlist

import (
	"strings"
	"testing"
)

// The whole way of a million users in no order.
func BenchmarkMillion(b *testing.B) {
	text, _ := numbered(1_000_000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		l, err := Read(b.Context(), strings.NewReader(text), options(""))
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for _, err := range l.All(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 1_000_000 {
			b.Fatalf("%d users", n)
		}
	}
}

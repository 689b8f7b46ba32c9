package userlist

import (
	"bytes"
	"math/bits"
)

// A record is a line, or an entry of a sequence, on its way through the sort:
//
//	user NUL length-of-number number identity
//
// where number is its own, big-endian without leading zero bytes. No user
// holds a NUL, so records sort bytewise by user and then by line.

// maxRecord is the longest record, in bytes.
const maxRecord = maxLine + 1 + 1 + 8

// appendRecord appends a record to dst.
func appendRecord(dst, user []byte, line int64, identity []byte) []byte {
	n := (bits.Len64(uint64(line)) + 7) / 8
	dst = append(dst, user...)
	dst = append(dst, 0, byte(n))
	for i := n - 1; i >= 0; i-- {
		dst = append(dst, byte(line>>(8*i)))
	}
	return append(dst, identity...)
}

// split takes a record apart. The parts share its memory.
func split(record []byte) (user []byte, line int64, identity []byte) {
	user, rest, _ := bytes.Cut(record, []byte{0})
	n := 1 + int(rest[0])
	for _, b := range rest[1:n] {
		line = line<<8 | int64(b)
	}
	return user, line, rest[n:]
}

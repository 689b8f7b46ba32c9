//go:build !race

package agent

// manyDue is how many are due in the test of a server that refuses everybody.
const manyDue = 100_000

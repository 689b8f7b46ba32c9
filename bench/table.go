package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// spread is what several rounds measured of one thing.
type spread []float64

func (s spread) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// format writes median, least and most.
func (s spread) format(verb string) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf(verb+" ["+verb+"–"+verb+"]", s.median(), slices.Min(s), slices.Max(s))
}

// each is the spread of f over the samples.
func each(samples []sample, f func(sample) float64) spread {
	var s spread
	for _, sample := range samples {
		s = append(s, f(sample))
	}
	return s
}

// ratio divides the rates of two contenders, round by round.
func ratio(a, b []sample) spread {
	var s spread
	for i := range min(len(a), len(b)) {
		s = append(s, a[i].rate()/b[i].rate())
	}
	return s
}

// row is one contender's line.
type row struct {
	name    string
	samples []sample
}

// of returns the samples of the contender of that name.
func of(rows []row, name string) []sample {
	for _, r := range rows {
		if r.name == name {
			return r.samples
		}
	}
	return nil
}

// printRates prints the rates, and how the house's and each one's own compare.
// yard is the contender by which all are measured.
func printRates(w io.Writer, title, yard string, rows []row) {
	t := [][]string{{"client", "users", "users/s", "of " + yard, house + " to it", "client CPU µs/user", "Dovecot CPU µs/user", "TCP segments/user"}}
	for _, r := range rows {
		t = append(t, []string{r.name, fmt.Sprint(r.samples[0].users),
			each(r.samples, sample.rate).format("%.0f"),
			ratio(r.samples, of(rows, yard)).format("%.2f"),
			ratio(of(rows, house), r.samples).format("%.2f"),
			each(r.samples, sample.clientPerUser).format("%.0f"),
			each(r.samples, sample.serverPerUser).format("%.0f"),
			fmt.Sprintf("%.1f", each(r.samples, func(s sample) float64 { return float64(s.segments) / float64(s.users) }).median()),
		})
	}
	printTable(w, title, t)
}

// printTimes prints how long each took for one user.
func printTimes(w io.Writer, title, yard string, rows []row) {
	t := [][]string{{"client", "ms", "times " + yard, "client CPU ms"}}
	for _, r := range rows {
		t = append(t, []string{r.name,
			each(r.samples, func(s sample) float64 { return s.wall.Seconds() * 1000 }).format("%.1f"),
			ratio(of(rows, yard), r.samples).format("%.2f"),
			each(r.samples, func(s sample) float64 { return s.client.Seconds() * 1000 }).format("%.1f"),
		})
	}
	printTable(w, title, t)
}

// printLoads prints what dovepush makes of each load, beside the raw clients.
func printLoads(w io.Writer, title string, loads []load, rows []row) {
	t := [][]string{{"connections × batch", "users", house + " users/s", "of " + yardHTTP, "of " + yardHTTP + twoSteps, "of " + standard().String(),
		house + " CPU µs/user", yardHTTP + " CPU µs/user", "Dovecot CPU µs/user"}}
	for _, l := range loads {
		ours, raw := of(rows, l.named(house)), of(rows, l.named(yardHTTP))
		t = append(t, []string{l.String(), fmt.Sprint(ours[0].users),
			each(ours, sample.rate).format("%.0f"),
			ratio(ours, raw).format("%.2f"),
			ratio(ours, of(rows, l.named(yardHTTP+twoSteps))).format("%.2f"),
			ratio(ours, of(rows, standard().named(house))).format("%.2f"),
			each(ours, sample.clientPerUser).format("%.0f"),
			each(raw, sample.clientPerUser).format("%.0f"),
			each(ours, sample.serverPerUser).format("%.0f"),
		})
	}
	printTable(w, title, t)
}

// printTable prints Markdown that is readable as it is.
func printTable(w io.Writer, title string, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	line := func(cells []string, pad string) {
		for i, cell := range cells {
			fmt.Fprintf(w, "|%s%s%s%s", pad, cell, strings.Repeat(pad, widths[i]-len([]rune(cell))), pad)
		}
		fmt.Fprintln(w, "|")
	}
	fmt.Fprintf(w, "\n### %s\n\n", title)
	line(rows[0], " ")
	line(make([]string, len(rows[0])), "-")
	for _, row := range rows[1:] {
		line(row, " ")
	}
}

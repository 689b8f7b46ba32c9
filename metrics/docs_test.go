package metrics

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dovepush/agent"
	"dovepush/imapmeta"
)

// described is what the page, or the exposition, says of a metric.
type described struct {
	Type    string
	Labels  []string // in order
	Meaning string
}

var quoted = regexp.MustCompile("`([^`]*)`")

// names returns what stands in backquotes.
func names(text string) []string {
	var found []string
	for _, match := range quoted.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// page reads the tables of docs/metrics.md: metrics by name, and values by label.
func page(t *testing.T) (metrics map[string]described, labels map[string][]string) {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics, labels = make(map[string]described), make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		name := names(cells[0])[0]
		switch len(cells) {
		case 5:
			metrics[name] = described{Type: cells[1], Labels: slices.Sorted(slices.Values(names(cells[2]))), Meaning: cells[3]}
		case 2:
			labels[name] = slices.Sorted(slices.Values(names(cells[1])))
		default:
			t.Errorf("%d cells: %s", len(cells), line)
		}
	}
	return metrics, labels
}

var (
	series = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? `)
	pair   = regexp.MustCompile(`([a-z]+)="([^"]*)"`)
)

// shownBy reads the same from an exposition, of our own metrics.
func shownBy(body string) (metrics map[string]described, labels map[string][]string) {
	metrics, labels = make(map[string]described), make(map[string][]string)
	values := make(map[string]map[string]bool)
	keys := make(map[string]map[string]bool)
	var name string // of the family that the lines belong to
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if help, found := strings.CutPrefix(line, "# HELP "); found {
			var text string
			name, text, _ = strings.Cut(help, " ")
			metrics[name] = described{Meaning: text}
			keys[name] = make(map[string]bool)
			continue
		}
		if _, kind, found := strings.Cut(line, "# TYPE "+name+" "); found {
			d := metrics[name]
			d.Type = kind
			metrics[name] = d
			continue
		}
		for _, match := range pair.FindAllStringSubmatch(series.FindStringSubmatch(line)[2], -1) {
			if key, value := match[1], match[2]; key != "le" && strings.HasPrefix(name, "dovepush_") {
				keys[name][key] = true
				if values[key] == nil {
					values[key] = make(map[string]bool)
				}
				values[key][value] = true
			}
		}
	}
	for name, d := range metrics {
		if !strings.HasPrefix(name, "dovepush_") {
			delete(metrics, name)
			continue
		}
		d.Labels = slices.Sorted(maps.Keys(keys[name]))
		metrics[name] = d
	}
	for key, seen := range values {
		labels[key] = slices.Sorted(maps.Keys(seen))
	}
	return metrics, labels
}

func TestThePageSaysWhatIsShown(t *testing.T) {
	wrote, _ := page(t)
	shown, _ := shownBy(fetch(t, serve(t, busy())))
	if diff := cmp.Diff(wrote, shown); diff != "" {
		t.Errorf("docs/metrics.md (-) and the exposition (+) differ:\n%s", diff)
	}
}

func TestThePageSaysWhichLabelsThereAre(t *testing.T) {
	wrote, written := page(t)
	reasons := []string{"refused", "timeout", "closed", "tls", "http", "redirect", "key", "reply", "x"}
	m := busy()
	m.options.Endpoints = func() (list []Endpoint) {
		for _, reason := range reasons {
			list = append(list, Endpoint{Server: "main", URL: "https://" + reason + ".example/doveadm/v1", Out: true, Reason: reason, Since: noon})
		}
		return list
	}
	for _, outcome := range []agent.Verdict{agent.Added, agent.Changed, agent.Removed, agent.Adopted, agent.Unchanged, agent.Conflict, agent.Failed, agent.Deferred, "x"} {
		for _, kind := range []imapmeta.Kind{"", imapmeta.Retry, imapmeta.User, imapmeta.Server, "x"} {
			m.Updated("main", outcome, kind, 0)
		}
	}
	for _, op := range written["op"] {
		m.RegistryFailed(op)
	}
	for _, name := range append(written["proof"], "x") {
		m.Proved(name, 1)
	}
	for _, name := range append(written["delivery"], "x") {
		m.Delivered("app", name, 0)
	}
	m.Notified("x", 0)
	_, shown := shownBy(fetch(t, serve(t, m)))
	for _, label := range []string{"state", "outcome", "kind", "op", "reason", "result", "proof", "delivery"} {
		want := slices.Clone(written[label])
		if label != "state" {
			want = slices.Sorted(slices.Values(append(want, other)))
		}
		if diff := cmp.Diff(want, shown[label]); diff != "" {
			t.Errorf("%s: docs/metrics.md (-) and the exposition (+) differ:\n%s", label, diff)
		}
	}
	for name, d := range wrote {
		for _, label := range d.Labels {
			if _, found := written[label]; !found && name != "dovepush_build_info" {
				t.Errorf("%s: label %s is not explained", name, label)
			}
		}
	}
	for label := range written {
		if _, found := shown[label]; !found {
			t.Errorf("no metric has the label %s", label)
		}
	}
}

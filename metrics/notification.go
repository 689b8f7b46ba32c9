package metrics

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dovepush/registry"
)

// Receiving is where the figures about Dovecot's notifications come from. The
// functions are called by scrapes; all may be nil.
type Receiving struct {
	// Results are those that Notified tells apart.
	Results []string
	// Proven counts the registered users for whom a notification has come, ever
	// and since a time. It is called by one scrape at a time, and shall heed its
	// context.
	Proven func(ctx context.Context, since time.Time) ([]registry.ProvenCount, error)
	// Watchers tells how many watch, and how many were dropped so far because
	// they read too slowly.
	Watchers func() (now int, dropped int64)
	// Webhooks tells how things stand with the configured webhooks.
	Webhooks func(ctx context.Context) ([]Webhook, error)
}

// Webhook is how things stand with one webhook.
type Webhook struct {
	Name    string
	Waiting int64     // notifications to be delivered
	Dead    int64     // notifications that were given up
	Skipped int64     // notifications that came when too many waited, so far
	Oldest  time.Time // since when the one waits that has waited longest; zero: none waits
	Down    bool      // it fails for everybody, and is set aside
}

// Lately is how long ago the last notification may have come that counts in
// dovepush_registrations_proven{lately="true"}.
const lately = 7 * 24 * time.Hour

// receiving are the metrics about notifications.
type receiving struct {
	notifications     *prometheus.CounterVec
	notificationTimes prometheus.Histogram
	proofs            *prometheus.CounterVec
	deliveries        *prometheus.CounterVec
	deliveryTimes     *prometheus.HistogramVec

	proven, provenLately, watchers, watchersDropped *prometheus.Desc
	up, waiting, dead, skipped, oldest              *prometheus.Desc
}

func newReceiving(o Receiving) *receiving {
	perWebhook := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"webhook"}, nil)
	}
	r := &receiving{
		notifications: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_notifications_total",
			Help: "Requests to the notification endpoint, by what came of them.",
		}, []string{"result"}),
		notificationTimes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "dovepush_notification_duration_seconds",
			Help:    "How long a notification took to be answered, its arrival included.",
			Buckets: seconds(),
		}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_proofs_total",
			Help: "Users for whom notifications came, by what the registry knows of them.",
		}, []string{"proof"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_webhook_deliveries_total",
			Help: "Attempts to deliver a notification to a webhook, by what came of them.",
		}, []string{"webhook", "delivery"}),
		deliveryTimes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "dovepush_webhook_delivery_duration_seconds",
			Help:    "How long a webhook took to answer, or not to.",
			Buckets: seconds(),
		}, []string{"webhook"}),

		proven: prometheus.NewDesc("dovepush_registrations_proven",
			"Registered users for whom a notification has ever come.", []string{"server"}, nil),
		provenLately: prometheus.NewDesc("dovepush_registrations_proven_lately",
			"Registered users for whom a notification came within the last seven days.", []string{"server"}, nil),
		watchers: prometheus.NewDesc("dovepush_watchers",
			"Clients that watch notifications.", nil, nil),
		watchersDropped: prometheus.NewDesc("dovepush_watchers_dropped_total",
			"Clients that were dropped because they read notifications too slowly.", nil, nil),
		up:      perWebhook("dovepush_webhook_up", "0 while the webhook fails for every notification and is set aside; else 1."),
		waiting: perWebhook("dovepush_webhook_waiting", "Notifications that wait to be delivered to the webhook."),
		dead:    perWebhook("dovepush_webhook_dead", "Notifications that the webhook did not take and that were given up."),
		skipped: perWebhook("dovepush_webhook_skipped_total", "Notifications that the webhook misses because too many waited already."),
		oldest:  perWebhook("dovepush_webhook_oldest_waiting_seconds", "For how long the notification has waited that has waited longest; 0 if none waits."),
	}
	for _, result := range append(slices.Clone(o.Results), other) {
		r.notifications.WithLabelValues(result)
	}
	for _, proof := range proofs() {
		r.proofs.WithLabelValues(proof)
	}
	return r
}

func (r *receiving) vectors() []prometheus.Collector {
	return []prometheus.Collector{r.notifications, r.notificationTimes, r.proofs, r.deliveries, r.deliveryTimes}
}

func (r *receiving) descs() []*prometheus.Desc {
	return []*prometheus.Desc{r.proven, r.provenLately, r.watchers, r.watchersDropped, r.up, r.waiting, r.dead, r.skipped, r.oldest}
}

// Notified counts a request to the notification endpoint. A result that is not
// among Receiving.Results counts as "other".
func (m *Metrics) Notified(result string, took time.Duration) {
	if m.receiving == nil {
		return
	}
	if !slices.Contains(m.options.Receiving.Results, result) {
		result = other
	}
	m.receiving.notifications.WithLabelValues(result).Inc()
	if result == "accepted" || result == "duplicate" {
		m.receiving.notificationTimes.Observe(max(took, 0).Seconds())
	}
}

// Proved counts users for whom notifications came: "proven", "unknown" (nobody
// is registered by that name), "failed" or "dropped".
func (m *Metrics) Proved(proof string, users int) {
	if m.receiving == nil {
		return
	}
	if !slices.Contains(proofs(), proof) {
		proof = other
	}
	m.receiving.proofs.WithLabelValues(proof).Add(float64(max(users, 0)))
}

// Delivered counts an attempt to deliver a notification to a configured
// webhook.
func (m *Metrics) Delivered(webhook, delivery string, took time.Duration) {
	if m.receiving == nil {
		return
	}
	if !slices.Contains(deliveries(), delivery) {
		delivery = other
	}
	webhook = strings.ToValidUTF8(webhook, "?")
	m.receiving.deliveries.WithLabelValues(webhook, delivery).Inc()
	m.receiving.deliveryTimes.WithLabelValues(webhook).Observe(max(took, 0).Seconds())
}

// showWatchers shows who watches.
func (m *Metrics) showWatchers(ch chan<- prometheus.Metric) {
	if m.receiving == nil || m.options.Receiving.Watchers == nil {
		return
	}
	now, dropped := m.options.Receiving.Watchers()
	ch <- gauge(m.receiving.watchers, float64(now))
	ch <- counted(m.receiving.watchersDropped, float64(dropped))
}

// showReceiving shows what is read from files. The caller is in m.reading.
func (m *Metrics) showReceiving(ctx context.Context, ch chan<- prometheus.Metric) {
	if m.receiving == nil {
		return
	}
	r, o := m.receiving, m.options.Receiving
	if o.Proven != nil {
		m.ask(ctx, opProven, provenTime, func(ctx context.Context) error {
			counts, err := o.Proven(ctx, m.options.Now().Add(-lately))
			if err != nil {
				return err
			}
			for _, l := range m.options.Loads() { // those of whom nobody is proven
				if !slices.ContainsFunc(counts, func(c registry.ProvenCount) bool { return c.Server == l.Server }) {
					counts = append(counts, registry.ProvenCount{Server: l.Server})
				}
			}
			for _, c := range counts {
				ch <- gauge(r.proven, float64(c.Ever), c.Server)
				ch <- gauge(r.provenLately, float64(c.Lately), c.Server)
			}
			return nil
		})
	}
	if o.Webhooks != nil {
		m.ask(ctx, opSpool, spoolTime, func(ctx context.Context) error {
			list, err := o.Webhooks(ctx)
			m.showWebhooks(ch, list)
			return err
		})
	}
}

// showWebhooks shows each webhook once.
func (m *Metrics) showWebhooks(ch chan<- prometheus.Metric, list []Webhook) {
	r, now, seen := m.receiving, m.options.Now(), make(map[string]bool)
	for _, w := range list {
		name := strings.ToValidUTF8(w.Name, "?")
		if seen[name] {
			continue
		}
		seen[name] = true
		for _, delivery := range deliveries() {
			r.deliveries.WithLabelValues(name, delivery) // begins with 0
		}
		r.deliveryTimes.WithLabelValues(name)
		var age time.Duration
		if !w.Oldest.IsZero() {
			age = max(now.Sub(w.Oldest), 0)
		}
		ch <- gauge(r.up, bit(!w.Down), name)
		ch <- gauge(r.waiting, float64(w.Waiting), name)
		ch <- gauge(r.dead, float64(w.Dead), name)
		ch <- counted(r.skipped, float64(w.Skipped), name)
		ch <- gauge(r.oldest, age.Seconds(), name)
	}
}

func counted(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
}

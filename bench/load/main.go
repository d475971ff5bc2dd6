// load: the API behind the proxies (`load api`), what reads their log (`load log`), and clients with
// the HTTP stack of Prometheus (`load scrape`). Each is told by lines on standard input.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	run := map[string]func(...string) error{"api": api, "log": log, "scrape": scrape}
	if err := run[os.Args[1]](os.Args[2:]...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// log is /dev/log of a server: it reads, and forgets.
func log(path ...string) error {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path[0], Net: "unixgram"})
	for b := make([]byte, 8192); err == nil; {
		_, err = socket.Read(b)
	}
	return err
}

const text = "sba_worker_queue_depth{queue_name=\"queue-of-some-name\"} 12345\n"

// api answers as Node does between scrapes: it closes each connection. A line is the body's size.
func api(argument ...string) error {
	var body atomic.Pointer[[]byte]
	http.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		if r.Header.Get("Authorization") != "Bearer "+argument[1] {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(*body.Load())))
		w.Write(*body.Load())
	})
	listener, err := net.Listen("tcp", argument[0])
	if err != nil {
		return err
	}
	go http.Serve(listener, nil)
	for input := bufio.NewScanner(os.Stdin); input.Scan(); fmt.Println("ok") {
		size, _ := strconv.Atoi(input.Text())
		document := bytes.Repeat([]byte(text), size/len(text)+1)[:size]
		body.Store(&document)
	}
	return nil
}

type clients struct {
	URL, CA, Token string
	Size           int64
	Clients        int
	Fresh, Slow    bool // a new connection each; 640 KB/s each
	read           atomic.Int64
}

// scrape opens its connections and scrapes once on each (where slow, it only begins to read), says
// "ready", and for each line, a count and the milliseconds between two, scrapes.
func scrape(options ...string) error {
	c := &clients{Clients: 1}
	if err := json.Unmarshal([]byte(options[0]), c); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.CA))
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		connection, err := net.DialTimeout(network, address, 5*time.Second)
		return counted{connection, &c.read}, err
	}
	all := make([]http.Client, c.Clients)
	for i := range all {
		all[i] = http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: dial,
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "prometheus-api.local"}}}
	}
	for i := range all {
		if err := c.once(&all[i]); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		var count, gap int
		fmt.Sscan(input.Text(), &count, &gap)
		fmt.Println(c.run(all, count, time.Duration(gap)*time.Millisecond))
	}
	return nil
}

// run answers with JSON: failures and the last one's reason, ms, bytes from the proxy a scrape.
func (c *clients) run(all []http.Client, count int, gap time.Duration) string {
	var next atomic.Int64
	var workers sync.WaitGroup
	took, errs := make([]float64, count), make([]error, count)
	c.read.Store(0)
	for i := range all {
		workers.Go(func() {
			for n := next.Add(1) - 1; int(n) < count; n = next.Add(1) - 1 {
				time.Sleep(gap)
				began := time.Now()
				errs[n] = c.once(&all[i])
				took[n] = time.Since(began).Seconds() * 1000
			}
		})
	}
	workers.Wait()
	slices.Sort(took)
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	answer, _ := json.Marshal(map[string]any{"failed": len(errs), "why": fmt.Sprint(errors.Join(errs...)),
		"p50": took[count/2], "p99": took[count*99/100], "bytes": c.read.Load() / int64(count)})
	return string(answer)
}

func (c *clients) once(client *http.Client) error {
	request, err := http.NewRequest("GET", c.URL, nil)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{"User-Agent": "Prometheus/3.5.0",
		"Accept":        "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
		"Authorization": c.Token, "X-Prometheus-Scrape-Timeout-Seconds": "10"} {
		if value != "" {
			request.Header.Set(name, value)
		}
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	if c.Slow {
		go func() {
			for b := make([]byte, 65536); err == nil; time.Sleep(100 * time.Millisecond) {
				_, err = io.ReadFull(answer.Body, b)
			}
		}()
		return nil
	}
	got, err := io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	if c.Fresh {
		client.CloseIdleConnections()
	}
	if err == nil && (answer.StatusCode != 200 || got != c.Size) {
		err = fmt.Errorf("%s, %d bytes", answer.Status, got)
	}
	return err
}

// counted counts what comes.
type counted struct {
	net.Conn
	read *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

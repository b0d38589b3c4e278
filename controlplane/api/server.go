// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"cairn/cloud/api"
)

// server is what every mounted operation shares.
type server struct {
	Config
	registry huma.Registry
	replays  replays
}

// New mounts the operations of cfg and returns the whole API as one handler. It
// refuses an operation without handler and a handler without operation.
func New(cfg Config) (http.Handler, error) {
	if cfg.Operations == nil {
		cfg.Operations = api.Operations
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Keys == nil {
		return nil, fmt.Errorf("mount the api: no key store")
	}
	if err := complete(cfg.Operations, cfg.Handlers); err != nil {
		return nil, err
	}
	router := chi.NewRouter()
	router.NotFound(nowhere)
	router.MethodNotAllowed(nowhere)

	s := &server{Config: cfg, registry: newRegistry(), replays: replays{firsts: map[string]*first{}}}
	doc := humachi.New(router, documentConfig(cfg, s.registry))
	for i := range cfg.Operations {
		if err := s.mount(doc, &cfg.Operations[i]); err != nil {
			return nil, err
		}
	}
	if err := serveDocument(router, doc.OpenAPI()); err != nil {
		return nil, err
	}
	return router, nil
}

// complete checks that operations and handlers match one to one.
func complete(operations []api.Operation, handlers Handlers) error {
	var lacking []string
	left := maps.Clone(handlers)
	for _, o := range operations {
		if handlers[o.ID] == nil {
			lacking = append(lacking, o.ID)
		}
		delete(left, o.ID)
	}
	if lacking != nil {
		return fmt.Errorf("mount the api: no handler for %s", strings.Join(lacking, ", "))
	}
	if len(left) > 0 {
		return fmt.Errorf("mount the api: no operation for the handlers %s", strings.Join(slices.Sorted(maps.Keys(left)), ", "))
	}
	return nil
}

// Merge joins the handlers that several orchestrators bring. Two for one operation
// are a mistake of the program.
func Merge(sets ...Handlers) Handlers {
	all := Handlers{}
	for _, set := range sets {
		for id, h := range set {
			if all[id] != nil {
				panic("two handlers for operation " + id)
			}
			all[id] = h
		}
	}
	return all
}

// nowhere answers a path or method that is no operation's.
func nowhere(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusNotFound, mustMarshal(errorBody{Message: http.StatusText(http.StatusNotFound)}))
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body) // a client that is gone is nobody's error
}

func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

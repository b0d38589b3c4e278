// SPDX-License-Identifier: Apache-2.0

// Package sshkey keeps the public keys that instances let in. A key has a name
// and no id, never changes, and concerns no agent: its operations end when they
// are accepted. Start at Handlers.
package sshkey

import (
	"context"
	"errors"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const noun = string(store.KindSSHKey)

type keys struct {
	store *store.Store
	gate  *operation.Gate
}

// Handlers performs the operations on SSH keys.
func Handlers(s *store.Store, g *operation.Gate) api.Handlers {
	k := keys{s, g}
	return api.Handlers{
		"list-ssh-keys":    k.list,
		"register-ssh-key": k.register,
		"get-ssh-key":      k.get,
		"delete-ssh-key":   k.delete,
	}
}

func (k keys) list(ctx context.Context, c api.Call) (any, error) {
	answer := cloud.SSHKeyList{SSHKeys: []cloud.SSHKey{}}
	err := k.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.SSHKeyDoc](tx, c.Org)
		for _, d := range docs {
			answer.SSHKeys = append(answer.SSHKeys, d.Body.SSHKey)
		}
		return err
	})
	return answer, err
}

// Named finds a key of an organisation. A refusal says that there is none.
func Named(tx *store.Tx, org cloud.ID, name string) (store.Doc[store.SSHKeyDoc], error) {
	d, err := store.Named[store.SSHKeyDoc](tx, org, name)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.NotFoundf("%s %q not found", noun, name)
	}
	return d, err
}

func (k keys) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.SSHKey
	err := k.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Named(tx, c.Org, c.Args["name"])
		answer = d.Body.SSHKey
		return err
	})
	return answer, err
}

func (k keys) register(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.RegisterSSHKeyRequest)
	fingerprint, err := cloud.Fingerprint(r.PublicKey)
	if err != nil {
		return nil, cloud.Invalidf("public-key", "expected a public key in authorized_keys format: %v", err)
	}
	return k.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d := store.Doc[store.SSHKeyDoc]{ID: cloud.NewID(), Org: c.Org, Generation: 1, Body: store.SSHKeyDoc{
			SSHKey: cloud.SSHKey{Name: r.Name, Fingerprint: fingerprint}, PublicKey: r.PublicKey,
		}}
		err := store.Put(tx, op, d)
		if errors.Is(err, store.ErrExists) {
			err = cloud.Exists(noun, r.Name)
		}
		return operation.Plan{Subject: d.Ref(), Generation: 1, Done: true}, err
	})
}

func (k keys) delete(ctx context.Context, c api.Call) (any, error) {
	return k.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		d, err := Named(tx, c.Org, c.Args["name"])
		if err != nil {
			return operation.Plan{}, err
		}
		return operation.Plan{Subject: d.Ref(), Done: true}, tx.Delete(op, d.Ref())
	})
}

// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/grpc"

	"cairn/cloud/join"
	agentv1 "cairn/proto/agent/v1"
)

// enrollTime bounds a call outside the stream.
const enrollTime = 15 * time.Second

// credentials are those in memory, else those on disk, else what a token buys.
func (c *Client) credentials(ctx context.Context) (join.Credentials, error) {
	c.mu.Lock()
	creds := c.creds
	c.mu.Unlock()
	if creds.Authority != nil {
		return creds, nil
	}
	creds, err := join.Load(c.cfg.Folder)
	if err != nil && c.cfg.Token != "" {
		if !errors.Is(err, fs.ErrNotExist) {
			c.cfg.Log.Warn("credentials are of no use, joining again", "error", err)
		}
		creds, err = c.enroll(ctx)
	}
	if err != nil {
		return creds, err
	}
	if name := c.cfg.Inventory().Name; creds.Name != name {
		return creds, fmt.Errorf("load credentials: they are of %s, not of %s", creds.Name, name)
	}
	c.set(creds)
	return creds, nil
}

func (c *Client) set(creds join.Credentials) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.creds = creds
}

func (c *Client) leaf() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	leaf := c.creds.Leaf
	return &leaf
}

func (c *Client) enroll(ctx context.Context) (join.Credentials, error) {
	token, err := join.Parse(c.cfg.Token)
	if err != nil {
		return join.Credentials{}, fmt.Errorf("join: %w", err)
	}
	key, err := join.NewKey()
	if err != nil {
		return join.Credentials{}, fmt.Errorf("join: make key: %w", err)
	}
	csr, err := join.Request(key, token.Name)
	if err != nil {
		return join.Credentials{}, fmt.Errorf("join: make request: %w", err)
	}
	conn, err := c.dial(join.Enrolling(token.Pin))
	if err != nil {
		return join.Credentials{}, fmt.Errorf("join: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, enrollTime)
	defer cancel()
	answer, err := agentv1.NewAgentsClient(conn).Enroll(ctx, &agentv1.EnrollRequest{Name: token.Name, Secret: token.Secret, Csr: csr})
	if err != nil {
		return join.Credentials{}, fmt.Errorf("join: %w", err)
	}
	return c.keep(key, answer.Certificate, answer.Authority)
}

func (c *Client) keep(key *ecdsa.PrivateKey, leaf, authority []byte) (join.Credentials, error) {
	creds, err := join.NewCredentials(key, leaf, authority)
	if err != nil {
		return creds, err
	}
	return creds, creds.Save(c.cfg.Folder)
}

// renew replaces the leaf. The stream that is open stays on the old one.
func (c *Client) renew(ctx context.Context, conn *grpc.ClientConn) error {
	key, err := join.NewKey()
	if err != nil {
		return fmt.Errorf("renew: make key: %w", err)
	}
	csr, err := join.Request(key, c.cfg.Inventory().Name)
	if err != nil {
		return fmt.Errorf("renew: make request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, enrollTime)
	defer cancel()
	answer, err := agentv1.NewAgentsClient(conn).Renew(ctx, &agentv1.RenewRequest{Csr: csr})
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	c.mu.Lock()
	authority := c.creds.Authority.Raw
	c.mu.Unlock()
	creds, err := c.keep(key, answer.Certificate, authority)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	c.set(creds)
	return nil
}

// renewals renews at half life while the connection lasts, and never twice
// within a minute, whatever the answers are.
func (c *Client) renewals(ctx context.Context, conn *grpc.ClientConn) {
	pause := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(time.Until(join.RenewAt(c.leaf().Leaf)), pause)):
		}
		if err := c.renew(ctx, conn); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("certificate not renewed", "error", err)
		}
		pause = time.Minute
	}
}

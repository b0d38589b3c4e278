// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"cairn/cloud"
	"cairn/cloud/place"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/elasticip"
	"cairn/controlplane/operation"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
)

// Order is what instances are made from: a request whose references have been
// looked up.
type Order struct {
	Org  cloud.ID
	Pool cloud.ID // whose members they are, if any

	request cloud.CreateInstanceRequest
	size    cloud.InstanceType
	image   cloud.Image
	keys    []cloud.SSHKeyRef
	groups  []cloud.Ref // security groups, at least one
	apart   []place.Group
	data    []byte
	public  cloud.PublicIPAssignment
	known   []string // the keys in authorized_keys form

	networks []privatenetwork.Doc
	elastics []store.Doc[store.ElasticIPDoc]
	joiner   Elastics
}

// Check looks up what a request names. A refusal names every fault.
func Check(tx *store.Tx, org cloud.ID, r cloud.CreateInstanceRequest) (Order, error) {
	o := Order{Org: org, request: r}
	faults, err := o.lookUp(tx)
	if err == nil && len(faults) > 0 {
		err = cloud.InvalidFields(faults)
	}
	return o, err
}

func (o *Order) lookUp(tx *store.Tx) (faults []cloud.FieldError, err error) {
	r, known := o.request, false
	if o.size, known = cloud.FindInstanceType(r.InstanceType.ID); !known {
		faults = append(faults, cloud.Fault("instance-type.id", "expected an instance type, there is no %s", r.InstanceType.ID))
	}
	if o.image, known = cloud.FindImage(r.Template.ID); !known {
		faults = append(faults, cloud.Fault("template.id", "expected a template, there is no %s", r.Template.ID))
	}
	o.public = cmp.Or(r.PublicIPAssignment, cloud.PublicIPInet4)
	if r.IPv6Enabled && r.PublicIPAssignment == "" {
		o.public = cloud.PublicIPDual // the older way of saying it
	}
	if r.IPv6Enabled && o.public != cloud.PublicIPDual {
		faults = append(faults, cloud.Fault("ipv6-enabled", "expected false: public-ip-assignment is %s", o.public))
	}
	if o.data, err = base64.StdEncoding.DecodeString(r.UserData); err != nil {
		return nil, fmt.Errorf("user-data: %w", err) // it was validated
	}
	for _, look := range []func(*store.Tx) ([]cloud.FieldError, error){o.lookUpKeys, o.lookUpGroups, o.lookUpApart} {
		more, err := look(tx)
		if err != nil {
			return nil, err
		}
		faults = append(faults, more...)
	}
	return append(faults, unsupported(r)...), nil
}

// unsupported lists what no hypervisor can give: better a refusal than an
// instance that lacks what was asked for.
func unsupported(r cloud.CreateInstanceRequest) (faults []cloud.FieldError) {
	for _, one := range []struct {
		asked bool
		field string
	}{
		{r.SecurebootEnabled, "secureboot-enabled"}, {r.TPMEnabled, "tpm-enabled"},
		{r.ConsistentSnapshot, "application-consistent-snapshot-enabled"},
	} {
		if one.asked {
			faults = append(faults, cloud.Fault(one.field, "expected false: the template does not support it"))
		}
	}
	if r.DeployTarget != nil {
		faults = append(faults, cloud.Fault("deploy-target", "expected none: the zone has no deploy targets"))
	}
	return faults
}

func (o *Order) lookUpKeys(tx *store.Tx) (faults []cloud.FieldError, err error) {
	o.keys = slices.Clone(o.request.SSHKeys)
	names := make([]string, len(o.keys))
	for n := range o.keys {
		names[n] = fmt.Sprintf("ssh-keys[%d].name", n)
	}
	if k := o.request.SSHKey; k != nil && !slices.Contains(o.keys, *k) {
		o.keys, names = slices.Insert(o.keys, 0, *k), slices.Insert(names, 0, "ssh-key.name")
	}
	for n, k := range o.keys {
		d, err := sshkey.Named(tx, o.Org, k.Name)
		o.known = append(o.known, d.Body.PublicKey)
		if faults, err = missing(faults, err, names[n], "an SSH key", k.Name); err != nil {
			return nil, err
		}
	}
	return faults, nil
}

// missing turns the refusal of a look-up into a fault of the field that named
// what is not there.
func missing(faults []cloud.FieldError, err error, field, what, name string) ([]cloud.FieldError, error) {
	var told *cloud.Error
	if errors.As(err, &told) && told.Kind == cloud.NotFound {
		return append(faults, cloud.Fault(field, "expected %s of yours, there is no %s", what, name)), nil
	}
	return faults, err
}

func (o *Order) lookUpGroups(tx *store.Tx) (faults []cloud.FieldError, err error) {
	for n, g := range o.request.SecurityGroups {
		_, err := securitygroup.Find(tx, o.Org, g.ID)
		faults, err = missing(faults, err, fmt.Sprintf("security-groups[%d].id", n), "a security group", string(g.ID))
		if err != nil {
			return nil, err
		}
		o.groups = append(o.groups, cloud.Ref{ID: g.ID})
	}
	if len(o.groups) == 0 {
		d, err := securitygroup.Default(tx, o.Org)
		if err != nil {
			return nil, err
		}
		o.groups = []cloud.Ref{{ID: d.ID}}
	}
	if len(faults) > 0 {
		return faults, nil
	}
	return nil, securitygroup.Fits(tx, o.groups)
}

func (o *Order) lookUpApart(tx *store.Tx) (faults []cloud.FieldError, err error) {
	for n, g := range o.request.AntiAffinityGroups {
		d, err := antiaffinity.Find(tx, o.Org, g.ID)
		faults, err = missing(faults, err, fmt.Sprintf("anti-affinity-groups[%d].id", n), "an anti-affinity group", string(g.ID))
		if err != nil {
			return nil, err
		}
		o.apart = append(o.apart, place.Group{ID: string(g.ID), Name: d.Body.Name})
	}
	return faults, nil
}

// Into puts the instances of an order into private networks, and attaches elastic
// IPs to them. A refusal names every fault.
func (i *Instances) Into(tx *store.Tx, o *Order, networks, elastics []cloud.Ref) error {
	o.joiner = i.Elastics
	var faults []cloud.FieldError
	for n, ref := range networks {
		d, err := privatenetwork.Find(tx, o.Org, ref.ID)
		faults, err = missing(faults, err, fmt.Sprintf("private-networks[%d].id", n), "a private network", string(ref.ID))
		if err != nil {
			return err
		}
		o.networks = append(o.networks, d)
	}
	for n, ref := range elastics {
		d, err := elasticip.Find(tx, o.Org, ref.ID)
		faults, err = missing(faults, err, fmt.Sprintf("elastic-ips[%d].id", n), "an elastic IP", string(ref.ID))
		if err != nil {
			return err
		}
		o.elastics = append(o.elastics, d)
	}
	if len(elastics) > 0 && o.public == cloud.PublicIPNone {
		faults = append(faults, cloud.Fault("elastic-ips", "expected none without a public interface"))
	}
	if len(faults) > 0 {
		return cloud.InvalidFields(faults)
	}
	return nil
}

// Make stores an instance of an order on a hypervisor, with the numbers and the
// addresses that it takes. An exhausted address pool is a refusal that names it.
func Make(tx *store.Tx, op, id cloud.ID, name string, o Order, at store.HypervisorDoc) (Doc, error) {
	class, err := securitygroup.Enter(tx, o.groups)
	if err != nil {
		return Doc{}, err
	}
	d := Doc{ID: id, Org: o.Org, Generation: 1, Body: store.InstanceDoc{
		Hypervisor: at.ID, HostNumber: at.Number, Class: class, Pool: o.Pool,
		Driver: o.image.Driver, Command: o.image.Command, UserDataRaw: o.data, Keys: o.known,
		Wanted: store.WantedRunning,
	}}
	if s := o.request.AutoStart; s != nil && !*s {
		d.Body.Wanted = store.WantedStopped
	}
	d.Body.Instance = o.shown(id, name)
	d.Body.CreatedAt = tx.Now().UTC()
	if err := o.open(tx, &d); err != nil {
		return Doc{}, err
	}
	for _, n := range o.networks {
		if err := privatenetwork.Join(tx, n, id, &d.Body, netip.Addr{}, nil); err != nil {
			return Doc{}, err
		}
	}
	if err := store.Put(tx, op, d); err != nil {
		return d, err
	}
	for _, e := range o.elastics {
		// As it stands by now: another member may have been attached in this transaction.
		now, err := elasticip.Find(tx, o.Org, e.ID)
		if err != nil {
			return d, err
		}
		if err := o.joiner.Join(tx, op, now, &d); err != nil {
			return d, err
		}
	}
	return d, nil
}

// open gives an instance its public interface and addresses, if it is to have
// them.
func (o *Order) open(tx *store.Tx, d *Doc) (err error) {
	if o.public == cloud.PublicIPNone {
		return nil
	}
	b, owner := &d.Body, string(d.ID)
	if b.Address, err = tx.AllocateAddress(store.AddressInstance, owner); err != nil {
		return err
	}
	if b.Port, err = tx.Allocate(store.NumberPort, owner); err != nil {
		return err
	}
	b.MAC = privatenetwork.MAC(b.Port)
	b.PublicIP, b.MACAddress = b.Address, b.MAC
	if o.public == cloud.PublicIPDual {
		return dual(tx, d)
	}
	return nil
}

// dual gives an instance an IPv6 address.
func dual(tx *store.Tx, d *Doc) (err error) {
	b := &d.Body
	b.Address6, err = tx.AllocateAddress(store.AddressInstance6, string(d.ID))
	b.IPv6Address, b.PublicIPAssignment = b.Address6, cloud.PublicIPDual
	return err
}

// shown is what the customer sees of an instance, but what the zone gives it.
func (o *Order) shown(id cloud.ID, name string) cloud.Instance {
	r := o.request
	i := cloud.Instance{
		ID: id, Name: name, State: cloud.InstanceState(machine.Initial),
		InstanceType: cloud.Ref{ID: o.size.ID}, Template: cloud.Ref{ID: o.image.ID}, DiskSize: r.DiskSize,
		UserData: r.UserData, Labels: r.Labels, PublicIPAssignment: o.public,
		SSHKeys: append([]cloud.SSHKeyRef{}, o.keys...), SecurityGroups: o.groups, AntiAffinityGroups: []cloud.Ref{},
		PrivateNetworks: []cloud.InstanceNetwork{}, ElasticIPs: []cloud.Ref{}, Snapshots: []cloud.Ref{},
	}
	if len(i.SSHKeys) > 0 {
		i.SSHKey = &i.SSHKeys[0]
	}
	for _, g := range o.apart {
		i.AntiAffinityGroups = append(i.AntiAffinityGroups, cloud.Ref{ID: cloud.ID(g.ID)})
	}
	if o.Pool != "" {
		i.Manager = &cloud.Manager{ID: o.Pool, Type: cloud.ManagerInstancePool}
	}
	return i
}

func (i *Instances) create(ctx context.Context, c api.Call) (any, error) {
	r := c.Body.(*cloud.CreateInstanceRequest)
	return i.gate.Accept(ctx, c, func(tx *store.Tx, op cloud.ID) (operation.Plan, error) {
		o, err := Check(tx, c.Org, *r)
		if err != nil {
			return operation.Plan{}, err
		}
		id := cloud.NewID()
		plan := operation.Plan{Subject: store.Ref{Kind: store.KindInstance, ID: id}, Generation: 1}
		at, err := Place(tx, o, 1)
		if errors.Is(err, place.ErrUnavailable) {
			plan.Failed = &operation.Outcome{Reason: cloud.ReasonUnavailable, Message: err.Error()}
			return plan, nil
		}
		if err != nil {
			return plan, err
		}
		name := r.Name
		if name == "" {
			name = "VM-" + string(id)
		}
		d, err := Make(tx, op, id, name, o, at[0])
		plan.Waiting = fmt.Sprintf("%s to make instance %s", at[0].Name, d.ID)
		return plan, err
	})
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The allocator: folios from the page allocator, as large as they can be had.
 *
 * They are preserved from the beginning, so that there is nothing to be done
 * before the kernel is left.
 */
#include <kunit/visibility.h>
#include <linux/kexec_handover.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "internal.h"

static u64 end_of(const struct prmem_run *run)
{
	return run->index + ((u64)run->count << run->order);
}

static unsigned long pfn_of(const struct prmem_run *run, u32 nr)
{
	return run->pfn + ((unsigned long)nr << run->order);
}

/**
 * prmem_runs_add() - put a folio at the end
 * @runs:	memory of an instance
 * @pfn:	of its first page
 * @order:	of the folio
 *
 * Return: 0, -EFBIG when there are more runs than a record can hold, -ENOMEM.
 */
int prmem_runs_add(struct prmem_runs *runs, unsigned long pfn, u32 order)
{
	struct prmem_run *last = runs->nr ? &runs->run[runs->nr - 1] : NULL;
	struct prmem_run *larger;
	u32 room;

	if (last && last->order == order && last->count < U32_MAX &&
	    pfn_of(last, last->count) == pfn) {
		last->count++;
		runs->pages += 1UL << order;
		return 0;
	}
	if (runs->nr == runs->room) {
		if (prmem_nodes_for(runs->nr + 1) > PRMEM_EXTENT_NODES_MAX)
			return -EFBIG;
		room = runs->room ? 2 * runs->room : 8;
		larger = kvrealloc(runs->run, room * sizeof(*larger), GFP_KERNEL);
		if (!larger)
			return -ENOMEM;
		runs->run = larger;
		runs->room = room;
	}
	runs->run[runs->nr++] = (struct prmem_run) {
		.index = runs->pages, .pfn = pfn, .order = order, .count = 1,
	};
	runs->pages += 1UL << order;
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_runs_add);

/* A zeroed and preserved folio of @order, or of less. */
static struct folio *get_folio(u32 order)
{
	struct folio *folio;
	gfp_t gfp;
	int err;

	for (;; order--) {
		/* no OOM killer: there may be less memory than somebody asks for */
		gfp = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;
		gfp |= order ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
		folio = folio_alloc(gfp, order);
		if (folio)
			break;
		if (!order)
			return ERR_PTR(-ENOMEM);
	}
	err = kho_preserve_folio(folio);
	if (err) {
		folio_put(folio);
		return ERR_PTR(err);
	}
	return folio;
}

static void put_folio(unsigned long pfn)
{
	struct folio *folio = pfn_folio(pfn);

	kho_unpreserve_folio(folio);
	folio_put(folio);
}

/**
 * prmem_runs_grow() - have more memory at the end
 * @runs:	memory of an instance
 * @pages:	how many there have to be in all
 *
 * Folios are no larger than PMD size, as what is larger is mapped no better,
 * and lie at indexes that are aligned to their size.
 *
 * Return: 0; -ENOMEM, -EFBIG: nothing has changed.
 */
int prmem_runs_grow(struct prmem_runs *runs, u64 pages)
{
	const u64 before = runs->pages;
	struct folio *folio;
	u32 order;
	int err;

	while (runs->pages < pages) {
		order = min_t(u32, ilog2(pages - runs->pages), PMD_ORDER);
		if (runs->pages)
			order = min_t(u32, order, __ffs64(runs->pages));
		folio = get_folio(order);
		err = PTR_ERR_OR_ZERO(folio);
		if (!err) {
			err = prmem_runs_add(runs, folio_pfn(folio), folio_order(folio));
			if (err)
				put_folio(folio_pfn(folio));
		}
		if (err) {
			prmem_runs_trim(runs, before);
			return err;
		}
		cond_resched();
	}
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_runs_grow);

/* Give back the folios behind the first @pages pages, which end one. */
void prmem_runs_trim(struct prmem_runs *runs, u64 pages)
{
	struct prmem_run *last;

	while (runs->pages > pages) {
		last = &runs->run[runs->nr - 1];
		put_folio(pfn_of(last, --last->count));
		runs->pages -= 1UL << last->order;
		if (!last->count)
			runs->nr--;
		cond_resched();
	}
}
EXPORT_SYMBOL_IF_KUNIT(prmem_runs_trim);

void prmem_runs_free(struct prmem_runs *runs)
{
	prmem_runs_trim(runs, 0);
	kvfree(runs->run);
	memset(runs, 0, sizeof(*runs));
}
EXPORT_SYMBOL_IF_KUNIT(prmem_runs_free);

/* The page with an index in the instance, or NULL. */
struct page *prmem_runs_page(const struct prmem_runs *runs, u64 index)
{
	u32 low = 0, high = runs->nr, middle;

	if (index >= runs->pages)
		return NULL;
	while (low < high) {
		middle = low + (high - low) / 2;
		if (index >= end_of(&runs->run[middle]))
			low = middle + 1;
		else
			high = middle;
	}
	return pfn_to_page(runs->run[low].pfn + (index - runs->run[low].index));
}
EXPORT_SYMBOL_IF_KUNIT(prmem_runs_page);

-- Counts a set of payments in their sliding windows and says what each of them finds there, itself included.
--
-- A window is a string of records of fixed width, oldest first; numbers are little-endian:
--   6 bytes time in ms, 8 bytes hash of the call, 3 bytes currency, 6 bytes minor units, 7 bytes running total
-- The hash names the call, so a repeat of a call finds itself and counts once. The running total is that of the
-- record's currency, modulo 2^50 (a thousand payments of the largest amount fit): the sum of a window is the difference
-- of two totals, and no window is ever read through. The processes of fraud stamp the time: a window is as exact as their
-- clocks agree. The cards of an IP address are records of 6 bytes time and 8 bytes
-- hash of the card, one per card, from the first time it was seen.
--
-- Strings and not sorted sets: one MGET reads all windows of a set and one command writes one, at a half to a quarter
-- of the cost. Each key is read once and written once however many payments of the set share it.
--
-- ARGV[1] is JSON:
--   short_from, long_from, long_ms, cards_from, cards_ms    times and spans in ms
--   kept, summed    per trait: records that its windows keep at least, 0 when no rule asks for it; whether sums count
--   cards_kept      cards that an IP address keeps at least
--   keys            per payment and trait: key of the window, "" for none
--   card_keys       per payment: key of its IP address's cards, "" for none
--   small           per payment: whether its card is to be counted there
--   currencies, amounts    per payment
-- ARGV[2] and ARGV[3] hold, per payment, its record without the running total and its card's record. No two payments of
-- one set come from the same call.
--
-- The answer is one string of little-endian 64-bit integers, for each payment: per trait the count and the sum of the
-- short window and the count and the sum of the long one, then the cards of its IP address, then 1 if it was new to any
-- window, then 1 if its card was new to the IP address. One string, because reading thousands of separate numbers would
-- cost the caller more than all the rest.

local call, find, floor, sub = redis.call, string.find, math.floor, string.sub
local pack, unpack_at = struct.pack, struct.unpack
local HEAD, RECORD, CARD = 23, 30, 14
local HASH_AT, CURRENCY_AT, AMOUNT_AT, TOTAL_AT = 6, 14, 17, 23
local HASH = 8
local MODULUS = 2 ^ 50
local KEYS_PER_READ = 1000 -- Lua's stack holds a few thousand arguments

local input = cjson.decode(ARGV[1])
local heads, cards = ARGV[2], ARGV[3]

-- Index of the first record that is not older than `from`.
local function index_since(value, width, from)
  local low, high = 0, #value / width
  while low < high do
    local middle = floor((low + high) / 2)
    if unpack_at('<I6', value, middle * width + 1) < from then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

-- Index of the first record in `currency` on the way from one index to another; nil when there is none.
local function index_of(value, currency, from, to, step)
  for index = from, to, step do
    local at = index * RECORD + CURRENCY_AT
    if sub(value, at + 1, at + 3) == currency then
      return index
    end
  end
end

local function total_at(value, index)
  return (unpack_at('<I7', value, index * RECORD + TOTAL_AT + 1))
end

-- Sum over the records from index `from` on, of which `last` is the last in `currency`.
local function sum_since(value, currency, from, last)
  if not last or last < from then
    return 0
  end
  local first = index_of(value, currency, from, last, 1)
  local amount = unpack_at('<I6', value, first * RECORD + AMOUNT_AT + 1)
  return (total_at(value, last) - total_at(value, first) + amount) % MODULUS
end

local function open(value, width, long_from, short_from)
  if not value then
    return { value = '', added = '', count = 0, short_count = 0 }
  end
  local records, long = #value / width, index_since(value, width, long_from)
  local short = short_from and index_since(value, width, short_from) or long
  return {
    value = value, added = '', long = long, short = short, count = records - long, short_count = records - short,
  }
end

-- Sum of the short window, sum of the long window, last running total.
local function in_currency(window, currency, summed)
  local value = window.value
  if value == '' then
    return { 0, 0, 0 }
  end
  local last = index_of(value, currency, #value / RECORD - 1, 0, -1)
  local total = last and total_at(value, last) or 0
  if not summed then
    return { 0, 0, total }
  end
  return { sum_since(value, currency, window.short, last), sum_since(value, currency, window.long, last), total }
end

local function holds(opened, hash)
  return find(opened.value, hash, 1, true) or find(opened.added, hash, 1, true)
end

local places, keys = {}, {} -- place of each distinct key, and back
local function gather(wanted)
  for _, key in ipairs(wanted) do
    if key ~= '' and not places[key] then
      keys[#keys + 1] = key
      places[key] = #keys
    end
  end
end
gather(input.keys)
gather(input.card_keys)

local values = {}
for from = 1, #keys, KEYS_PER_READ do
  local read = call('MGET', unpack(keys, from, math.min(from + KEYS_PER_READ - 1, #keys)))
  for i, value in ipairs(read) do
    values[from + i - 1] = value
  end
end

local windows, kept, addresses = {}, {}, {} -- by place

-- Count payment `i` for one trait; returns what it finds there, and whether it is new.
local function count(i, trait, key, head)
  local place, currency, amount = places[key], input.currencies[i], input.amounts[i]
  local window = windows[place]
  if not window then
    window = open(values[place], RECORD, input.long_from, input.short_from)
    windows[place], kept[place] = window, input.kept[trait]
  end
  local sums = window[currency]
  if not sums then
    sums = in_currency(window, currency, input.summed[trait])
    window[currency] = sums
  end
  local new = not holds(window, sub(head, HASH_AT + 1, HASH_AT + HASH))
  if new then
    window.short_count, window.count = window.short_count + 1, window.count + 1
    sums[1], sums[2], sums[3] = sums[1] + amount, sums[2] + amount, (sums[3] + amount) % MODULUS
    window.added = window.added .. head .. pack('<I7', sums[3])
  end
  return window.short_count, sums[1], window.count, sums[2], new
end

-- Count the card of payment `i` for its IP address; returns the cards there, and whether it is new.
local function count_card(i, key)
  local place = places[key]
  local address = addresses[place]
  if not address then
    address = open(values[place], CARD, input.cards_from)
    addresses[place] = address
  end
  local card = sub(cards, (i - 1) * CARD + 1, i * CARD)
  local new = input.small[i] and not holds(address, sub(card, HASH_AT + 1))
  if new then
    address.count, address.added = address.count + 1, address.added .. card
  end
  return address.count, new
end

-- Append, or write anew what is alive when so much has been appended that the key would outgrow its bound.
local function write(key, opened, width, records, span_ms)
  local value, added, most = opened.value, opened.added, records * width
  if added == '' then
    return
  elseif value == '' then
    call('SET', key, added, 'PX', span_ms)
  elseif #value + #added <= 2 * most then
    call('APPEND', key, added)
    call('PEXPIRE', key, span_ms)
  else
    call('SET', key, sub(sub(value, opened.long * width + 1) .. added, -most), 'PX', span_ms)
  end
end

local answers, traits = {}, #input.kept
local format = '<' .. string.rep('i8', traits * 4 + 3)
for i = 1, #input.currencies do
  local head = sub(heads, (i - 1) * HEAD + 1, i * HEAD)
  local answer, any_new, at = {}, 0, 0
  for trait = 1, traits do
    local key, new = input.keys[(i - 1) * traits + trait], false
    if key == '' then
      answer[at + 1], answer[at + 2], answer[at + 3], answer[at + 4] = 0, 0, 0, 0
    else
      answer[at + 1], answer[at + 2], answer[at + 3], answer[at + 4], new = count(i, trait, key, head)
    end
    any_new = new and 1 or any_new
    at = at + 4
  end
  local card_key, seen, card_new = input.card_keys[i], 0, false
  if card_key ~= '' then
    seen, card_new = count_card(i, card_key)
  end
  answer[at + 1], answer[at + 2], answer[at + 3] = seen, any_new, card_new and 1 or 0
  answers[i] = pack(format, unpack(answer))
end

for place, window in pairs(windows) do
  write(keys[place], window, RECORD, kept[place], input.long_ms)
end
for place, address in pairs(addresses) do
  write(keys[place], address, CARD, input.cards_kept, input.cards_ms)
end
return table.concat(answers)

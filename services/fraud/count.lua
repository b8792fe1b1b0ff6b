-- Counts a set of payments in their sliding windows and says what each of them finds there, itself included.
-- See layout.lua for how windows lie here.
--
-- ARGV[1] is JSON: the families. For each of them ARGV has three more texts:
--   the fields of the windows that the set touches, each once, 8 bytes a piece;
--   the records for these windows, in the order of the windows, within one in the order of the set. Their running total
--     is their amount. A record whose time is 0 only looks;
--   how many records each window gets, 2 bytes a piece; empty when it is one for each.
-- No two records for one window come from the same call, but cards may come more than once.
--
-- The answer is one string of little-endian 64-bit integers. It leaves out every window that was empty and got one
-- record, for there is nothing to tell: nearly all of them. Of each other window it has the number of the family, the
-- place of the first of its records, how many there are, and for each record: count and sum of the short window, count
-- and sum of the long one, and 1 if it was new. Sums are 0 where nobody asks. One string, because reading thousands of
-- separate numbers would cost the caller more than all the rest.

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

local function open(value, family)
  local records, long = #value / family.width, index_since(value, family.width, family.from)
  local short = family.short_from and index_since(value, family.width, family.short_from) or long
  return { value = value, long = long, short = short, count = records - long, short_count = records - short }
end

-- Sum of the short window, sum of the long window, last running total.
local function in_currency(window, currency, summed)
  local value = window.value
  local last = index_of(value, currency, #value / RECORD - 1, 0, -1)
  local total = last and total_at(value, last) or 0
  if not summed then
    return { 0, 0, total }
  end
  return { sum_since(value, currency, window.short, last), sum_since(value, currency, window.long, last), total }
end

-- Count `records` in a window; returns what is to be added to it, and the numbers for the answer.
local function count(window, records, family)
  local width, value, added, seen = family.width, window.value, '', {}
  -- A repeat of a call finds itself however old it is. A card that was last counted before the window counts anew.
  local find_from = width == RECORD and 1 or window.long * width + 1
  for at = 1, #records, width do
    local record = sub(records, at, at + width - 1)
    local hash = sub(record, HASH_AT + 1, HASH_AT + HASH)
    local new = sub(record, 1, HASH_AT) ~= NO_TIME
      and not find(value, hash, find_from, true) and not find(added, hash, 1, true)
    local sums = window
    if width == RECORD then
      local currency = sub(record, CURRENCY_AT + 1, CURRENCY_AT + 3)
      sums = window[currency] or in_currency(window, currency, family.summed)
      window[currency] = sums
      if new then
        local amount = unpack_at('<I6', record, AMOUNT_AT + 1)
        sums[3] = (sums[3] + amount) % MODULUS
        record = sub(record, 1, HEAD) .. pack('<I7', sums[3])
        if family.summed then
          sums[1], sums[2] = sums[1] + amount, sums[2] + amount
        end
      end
    end
    if new then
      window.short_count, window.count = window.short_count + 1, window.count + 1
      added = added .. record
    end
    seen[#seen + 1] = pack('<i8i8i8i8i8', window.short_count, sums[1] or 0, window.count, sums[2] or 0, new and 1 or 0)
  end
  return added, table.concat(seen)
end

-- Write a window that is too large for a shelf.
local function write_own(key, alive, family)
  local most = family.kept * family.width
  call('SET', key, #alive > 2 * most and sub(alive, -most) or alive, 'PX', family.span_ms)
end

-- Add records to a window with a key of its own: append, or write anew what is alive when so much has been appended
-- that the key would outgrow its bound.
local function append(key, window, added, family)
  if #window.value + #added <= 2 * family.kept * family.width then
    call('APPEND', key, added)
    call('PEXPIRE', key, family.span_ms)
  else
    write_own(key, sub(window.value, window.long * family.width + 1) .. added, family)
  end
end

-- Count `records` in the window that lies under `field` as `value`; returns the value to be put there, nil for no
-- change, and the numbers for the answer.
local function count_in(family, field, value, records)
  local key = own_key(family, field)
  local own = value == '' and call('GET', key)
  local window = open(own or value or '', family)
  local added, numbers = count(window, records, family)
  if added == '' then
    return nil, numbers
  elseif own then
    append(key, window, added, family)
    return '', numbers
  end
  local alive = sub(window.value, window.long * family.width + 1) .. added
  if #alive <= SHELVED_MAX * family.width then
    return alive, numbers
  end
  write_own(key, alive, family)
  return '', numbers
end

local answers = {}

local function count_family(number, family, fields, records, sizes)
  local newer, older, gone = shelves(family)
  local width = family.width
  local values, is_old = read_both(newer, older, fields)
  local put, first = {}, 0
  for place = 1, #fields do
    local field, value = fields[place], values[place]
    local size = sizes == '' and 1 or unpack_at('<I2', sizes, place * 2 - 1)
    local own = sub(records, first * width + 1, (first + size) * width)
    if not value and size == 1 then
      if sub(own, 1, HASH_AT) ~= NO_TIME then
        put[#put + 1], put[#put + 2] = field, own
      end
    else
      local numbers
      value, numbers = count_in(family, field, value, own)
      answers[#answers + 1] = pack('<i8i8i8', number, first, size) .. numbers
      if value and (value ~= '' or values[place] ~= '' or is_old[place]) then
        put[#put + 1], put[#put + 2] = field, value
      end
    end
    first = first + size
  end
  if #put > 0 then
    call_with('HSET', newer, put)
    call('PEXPIRE', newer, family.left_ms)
  end
  call('UNLINK', gone)
end

for number, family in ipairs(cjson.decode(ARGV[1])) do
  local fields, records, sizes = ARGV[number * 3 - 1], ARGV[number * 3], ARGV[number * 3 + 1]
  if fields ~= '' then
    count_family(number, family, cut(fields, HASH), records, sizes)
  end
end
return table.concat(answers)

"""The seven pollutants and what people call them, in Chinese and English: the first name of each is the standard one.

Formulas with subscripts (CO₂) or in full width are wordings of the plain ones and made in `wordings.py`. No name stands under two
pollutants, also none that differs in case, blanks or punctuation alone; a test says so.
"""

from __future__ import annotations

POLLUTANTS: dict[str, tuple[str, ...]] = {
    "CO2": (
        "CO2", "二氧化碳", "碳排放", "温室气体二氧化碳", "碳酸气", "carbon dioxide", "carbonic anhydride", "dry ice gas", "干冰气体",
        "carbon-dioxide gas", "GHG CO2", "二氧化碳气体", "eryanghuatan", "尾气二氧化碳", "atmospheric CO2",
    ),
    "CO": (
        "CO", "一氧化碳", "煤气", "一氧化碳气体", "carbon monoxide", "carbonous oxide", "carbon monoxide gas", "CO gas", "yiyanghuatan",
        "尾气一氧化碳", "monoxide of carbon", "车内煤气", "exhaust CO", "carbon(II) oxide", "不完全燃烧一氧化碳", "flue CO",
    ),
    "NOx": (
        "NOx", "氮氧化物", "氮氧化合物", "氧化氮", "nitrogen oxides", "oxides of nitrogen", "nitric oxides", "NO+NO2", "NO和NO2",
        "danyanghuawu", "尾气氮氧化物", "nitrogen oxide", "total NOx", "N oxides", "一氧化氮和二氧化氮", "硝气",
    ),
    "PM2.5": (
        "PM2.5", "细颗粒物", "细粒子", "可入肺颗粒物", "fine particulate matter", "fine particles", "细微颗粒物", "2.5微米颗粒物",
        "fine dust PM2.5", "particulate matter 2.5", "PM-2.5颗粒", "xikeliwu", "fine PM", "细颗粒", "particles under 2.5 microns",
        "雾霾细颗粒物",
    ),
    "PM10": (
        "PM10", "可吸入颗粒物", "粗颗粒物", "10微米颗粒物", "inhalable particles", "coarse particulate matter", "coarse particles", "飘尘",
        "particulate matter 10", "respirable coarse dust", "PM-10颗粒", "kexiru keliwu", "inhalable particulate matter", "粗粒子",
        "particles under 10 microns", "可吸入粒子",
    ),
    "THC": (
        "THC", "总碳氢化合物", "碳氢化合物", "总烃", "碳氢", "HC", "total hydrocarbons", "hydrocarbons", "unburned hydrocarbons", "烃类",
        "未燃烃", "tanqing huahewu", "total HC", "尾气碳氢", "hydrocarbon compounds", "UHC",
    ),
    "SO2": (
        "SO2", "二氧化硫", "亚硫酸酐", "硫氧化物二氧化硫", "sulfur dioxide", "sulphur dioxide", "sulfurous anhydride", "二氧化硫气体",
        "eryanghualiu", "尾气二氧化硫", "SO2 gas", "燃煤二氧化硫", "sulfur(IV) oxide", "sulphur dioxide gas", "含硫废气", "酸雨气体",
    ),
}  # fmt: skip
